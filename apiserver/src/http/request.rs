//! The parts of a request that its handlers read.

use hyper::Method;
use hyper::body::Bytes;

use crate::authentication::Caller;
use crate::object::Entry;
use crate::resource::Resource;
use crate::selector::Selector;
use crate::status_error::StatusError;

use super::query::Query;

/// An authenticated request with its whole body.
#[derive(Debug)]
pub(super) struct ApiRequest<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) query: Query,
    /// True if the client asked for `PartialObjectMetadata`.
    pub(super) metadata_only: bool,
    /// `Content-Type` without parameters.
    pub(super) content_type: &'a str,
    pub(super) caller: Caller,
    /// How the initial events of a watch end.
    pub(super) initial_events: InitialEvents,
    pub(super) body: Bytes,
}

impl ApiRequest<'_> {
    /// Encodes an entry in the form that the client asked for.
    pub(super) fn encode(&self, entry: &Entry) -> Bytes {
        if self.metadata_only { entry.metadata_only() } else { entry.full() }
    }

    /// True for a watch.
    pub(super) fn is_watch(&self) -> bool {
        self.query.flag("watch")
    }

    /// True for a streaming list: a watch that starts with all existing objects.
    pub(super) fn is_streaming_list(&self) -> bool {
        self.is_watch() && self.query.flag("sendInitialEvents")
    }

    /// Parses `labelSelector` and `fieldSelector`.
    pub(super) fn selector(&self, resource: Resource) -> Result<Selector, StatusError> {
        Selector::parse(resource, self.query.text("labelSelector"), self.query.text("fieldSelector"))
    }
}

/// The resource, and perhaps the object, that a path names.
#[derive(Debug)]
pub(super) struct ResourcePath<'a> {
    pub(super) resource: Resource,
    /// Empty if the path names no namespace.
    pub(super) namespace: &'a str,
    /// Empty for a whole collection.
    pub(super) name: &'a str,
    /// True for the `status` subresource.
    pub(super) status: bool,
}

/// How the initial events of a watch end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InitialEvents {
    /// With the bookmark that ends them, if the client asked for it.
    Complete,
    /// Without this bookmark; the watch continues.
    WithoutBookmark,
    /// The watch ends after them, without this bookmark.
    Ended,
}

/// Verb and resource of a request as they are counted: `list services`. Stored in the response's extensions.
#[derive(Clone, Debug)]
pub(super) struct RequestKind(pub(super) String);
