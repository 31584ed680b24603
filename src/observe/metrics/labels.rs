//! Types and labels that several groups of metrics share.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::cluster::Family;
use crate::table::Table;

/// The label of metrics that exist once per IP family.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FamilyLabel {
    pub(super) ip_family: &'static str,
}

impl FamilyLabel {
    pub(super) const fn new(family: Family) -> Self {
        Self { ip_family: family.proper_name() }
    }
}

/// The labels of metrics that exist once per table of an IP family.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TableLabels {
    ip_family: &'static str,
    table: &'static str,
}

impl TableLabels {
    pub(super) const fn new(family: Family, table: Table) -> Self {
        Self { ip_family: FamilyLabel::new(family).ip_family, table: table.as_str() }
    }
}

/// A gauge that counts things.
pub(super) type Count = Gauge<u64, AtomicU64>;

/// A gauge in seconds.
pub(super) type Seconds = Gauge<f64, AtomicU64>;

/// One histogram per set of labels.
pub(super) type Durations<L = FamilyLabel> = Labelled<L, Histogram, fn() -> Histogram>;

/// A histogram with kube-proxy's buckets for syncs: 1 ms, 2 ms and so on to 16.384 s.
pub(super) fn sync_durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}
