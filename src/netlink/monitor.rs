//! What changes in the kernel, as it changes.

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

use super::error::{Cause, NetlinkError};
use super::readings;
use super::socket::{Message, Messages, large_buffer};

const GROUPS: [u32; 6] = [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE, RTNLGRP_NEIGH];
/// Room for one datagram.
const DATAGRAM_LEN: usize = 64 * 1024;
/// Datagrams that are read in one go.
const AT_ONCE: usize = 512;

/// Something that changed. It says what to look at again, not what it is now: several of one kind are as good as one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Event {
    /// A link came, or is not what it was, or went. What goes with a link, or with its being up, may go without being told.
    Link {
        /// Its number.
        index: u32,
        /// Its name.
        name: String,
        /// It went.
        gone: bool,
    },
    /// An address came, or is not what it was, or went.
    Address {
        /// The link it is of.
        link: u32,
        /// It went.
        gone: bool,
    },
    /// A route of the main table came, or is not what it was, or went.
    Route {
        /// The link it leaves by, if it is one.
        link: Option<u32>,
        /// Who made it (`RTPROT_*`).
        protocol: u8,
        /// It went.
        gone: bool,
    },
    /// A neighbour came, or is not what it was, or went.
    Neighbour {
        /// The link it is of.
        link: u32,
        /// It went.
        gone: bool,
    },
    /// A forwarding entry of a VXLAN link or a bridge came, or is not what it was, or went.
    Fdb {
        /// The link it is of.
        link: u32,
        /// It went.
        gone: bool,
    },
    /// More happened than could be kept: everything has to be looked at.
    Lost,
}

impl Event {
    /// Whether it is about one of these links, about a route of ours, or about anything at all.
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

/// Tells of changes in the network namespace of the thread that opened it. Needs a tokio runtime. Changes that this process makes
/// itself are told like all others.
pub struct Monitor {
    socket: TokioSocket,
    datagram: Vec<u8>,
}

const CALL: &str = "listen for changes of";

impl Monitor {
    /// Listens from now on: what is listed after this and changes later is told.
    ///
    /// # Errors
    /// There are no more sockets to be had.
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

    /// Waits until something changes and gives what did, each kind of change once. Nothing is lost where this is dropped half-way.
    ///
    /// # Errors
    /// The socket failed for good; a new one may do.
    pub async fn next(&mut self) -> Result<Vec<Event>, NetlinkError> {
        poll_fn(|context| self.poll_next(context)).await.map_err(|error| error_of(error.into()))
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Vec<Event>>> {
        let mut events = Vec::new();
        for _ in 0..AT_ONCE {
            self.datagram.clear();
            match self.socket.poll_recv(context, &mut self.datagram) {
                Poll::Ready(Ok(())) => events.extend(Messages(&self.datagram).filter_map(|message| event(&message))),
                Poll::Ready(Err(error)) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => events.push(Event::Lost),
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if events.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if events.is_empty() {
            // Nothing of interest so far, and more is waiting: others have their turn first.
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

fn event(message: &Message<'_>) -> Option<Event> {
    let body = message.body;
    match message.kind {
        kind @ (RTM_NEWLINK | RTM_DELLINK) => {
            readings::link(body).map(|link| Event::Link { index: link.index, name: link.name, gone: kind == RTM_DELLINK })
        }
        kind @ (RTM_NEWADDR | RTM_DELADDR) => readings::address(body).map(|(link, _)| Event::Address { link, gone: kind == RTM_DELADDR }),
        kind @ (RTM_NEWROUTE | RTM_DELROUTE) => {
            readings::route(body).map(|route| Event::Route { link: route.link, protocol: route.protocol, gone: kind == RTM_DELROUTE })
        }
        kind @ (RTM_NEWNEIGH | RTM_DELNEIGH) => {
            let gone = kind == RTM_DELNEIGH;
            readings::neighbour_link(body).map(|(link, fdb)| if fdb { Event::Fdb { link, gone } } else { Event::Neighbour { link, gone } })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_concern_links_or_our_routes() {
        let route = |link, protocol| Event::Route { link, protocol, gone: true };
        assert!(Event::Lost.concerns(&[]));
        assert!(route(None, OUR_PROTOCOL).concerns(&[]) && route(Some(3), 2).concerns(&[3]));
        assert!(!route(Some(4), 2).concerns(&[3]) && !route(None, 2).concerns(&[3]));
        let link = Event::Link { index: 3, name: "eth0".to_owned(), gone: false };
        assert!(link.concerns(&[2, 3]) && !link.concerns(&[2]));
    }
}
