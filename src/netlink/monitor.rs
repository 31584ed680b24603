//! Reports changes of links, addresses, routes, neighbours and FDB entries as they happen.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, TokioSocket};
use nix::errno::Errno;
use nix::libc::{
    RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE, RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE, RTNLGRP_LINK, RTNLGRP_NEIGH,
};

use super::entry::OUR_PROTOCOL;

use super::decode;
use super::error::{Cause, NetlinkError};
use super::message::{Message, Messages};
use super::socket::large_buffer;

const GROUPS: [u32; 6] = [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE, RTNLGRP_NEIGH];
/// Room for one datagram.
const DATAGRAM_LEN: usize = 64 * 1024;
/// The largest number of datagrams that one poll reads.
const MAX_DATAGRAMS: usize = 512;

/// A change in the kernel. It names the object to read again, not its new state, so equal events are handled only once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KernelEvent {
    /// A link was created, changed or deleted. The kernel deletes entries of a link that is deleted or set down, and may not report them.
    Link {
        /// Index of the link.
        index: u32,
        /// Name of the link.
        name: String,
        /// True if it was deleted.
        gone: bool,
    },
    /// An address was added, changed or deleted.
    Address {
        /// Index of its link.
        link: u32,
        /// True if it was deleted.
        gone: bool,
    },
    /// A route of the main table was added, changed or deleted.
    Route {
        /// Index of the link that it uses, if there is exactly one.
        link: Option<u32>,
        /// The route's protocol (`RTPROT_*`).
        protocol: u8,
        /// True if it was deleted.
        gone: bool,
    },
    /// A neighbour was added, changed or deleted.
    Neighbour {
        /// Index of its link.
        link: u32,
        /// True if it was deleted.
        gone: bool,
    },
    /// An FDB entry of a VXLAN link or a bridge was added, changed or deleted.
    Fdb {
        /// Index of its link.
        link: u32,
        /// True if it was deleted.
        gone: bool,
    },
    /// The receive buffer overflowed and events were lost. Everything has to be read again.
    Lost,
}

impl KernelEvent {
    /// True if the event is about one of these links, about a route with our protocol, or if events were lost.
    #[must_use]
    pub fn concerns(&self, links: &[u32]) -> bool {
        match self {
            Self::Link { index: link, .. } | Self::Address { link, .. } | Self::Neighbour { link, .. } | Self::Fdb { link, .. } => {
                links.contains(link)
            }
            Self::Route { link, protocol, .. } => *protocol == OUR_PROTOCOL || link.is_some_and(|link| links.contains(&link)),
            Self::Lost => true,
        }
    }
}

/// Listens for changes in the network namespace of the thread that opened it. Needs a tokio runtime. Also reports this process's own
/// changes.
pub struct Monitor {
    socket: TokioSocket,
    datagram: Vec<u8>,
}

const CALL: &str = "listen for changes of";

impl Monitor {
    /// Starts to listen. If the caller lists the tables after this call, no later change is missed.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_mut().bind_auto()?;
            large_buffer(socket.socket_ref());
            for group in GROUPS {
                socket.socket_mut().add_membership(group)?;
            }
            Ok(socket)
        };
        let socket = open().map_err(|error: io::Error| error_of(error.into()))?;
        Ok(Self { socket, datagram: Vec::with_capacity(DATAGRAM_LEN) })
    }

    /// Waits for changes and returns them, equal events once. No event is lost if the future is dropped.
    ///
    /// # Errors
    /// The socket failed. Open a new monitor.
    pub async fn next(&mut self) -> Result<Vec<KernelEvent>, NetlinkError> {
        poll_fn(|context| self.poll_next(context)).await.map_err(|error| error_of(error.into()))
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Vec<KernelEvent>>> {
        let mut events = Vec::new();
        for _ in 0..MAX_DATAGRAMS {
            self.datagram.clear();
            match self.socket.poll_recv(context, &mut self.datagram) {
                Poll::Ready(Ok(())) => events.extend(Messages(&self.datagram).filter_map(|message| event(&message))),
                Poll::Ready(Err(error)) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => events.push(KernelEvent::Lost),
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if events.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if events.is_empty() {
            // More datagrams wait, but none so far contained an event. Let other tasks run first.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        events.sort_unstable();
        events.dedup();
        Poll::Ready(Ok(events))
    }
}

fn error_of(cause: Cause) -> NetlinkError {
    NetlinkError { call: CALL, object: "links, addresses, routes and neighbours".to_owned(), cause }
}

fn event(message: &Message<'_>) -> Option<KernelEvent> {
    let body = message.body;
    match message.kind {
        kind @ (RTM_NEWLINK | RTM_DELLINK) => {
            decode::link(body).map(|link| KernelEvent::Link { index: link.index, name: link.name, gone: kind == RTM_DELLINK })
        }
        kind @ (RTM_NEWADDR | RTM_DELADDR) => {
            decode::address(body).map(|(link, _)| KernelEvent::Address { link, gone: kind == RTM_DELADDR })
        }
        kind @ (RTM_NEWROUTE | RTM_DELROUTE) => {
            decode::route(body).map(|route| KernelEvent::Route { link: route.link, protocol: route.protocol, gone: kind == RTM_DELROUTE })
        }
        kind @ (RTM_NEWNEIGH | RTM_DELNEIGH) => {
            let gone = kind == RTM_DELNEIGH;
            decode::neighbour_link(body)
                .map(|(link, fdb)| if fdb { KernelEvent::Fdb { link, gone } } else { KernelEvent::Neighbour { link, gone } })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_concern_links_or_our_routes() {
        let route = |link, protocol| KernelEvent::Route { link, protocol, gone: true };
        assert!(KernelEvent::Lost.concerns(&[]));
        assert!(route(None, OUR_PROTOCOL).concerns(&[]) && route(Some(3), 2).concerns(&[3]));
        assert!(!route(Some(4), 2).concerns(&[3]) && !route(None, 2).concerns(&[3]));
        let link = KernelEvent::Link { index: 3, name: "eth0".to_owned(), gone: false };
        assert!(link.concerns(&[2, 3]) && !link.concerns(&[2]));
    }
}
