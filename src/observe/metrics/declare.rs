//! The macro that declares metrics. Name, help text, type and first value of a metric stand in one place.

/// Declares a group of metrics. Generates the struct, its `Default`, and `register`, which adds the metrics to the catalogue in this order.
///
/// Each entry is `field: type = first value, "exported name", "help text";`. Without a first value the metric starts as its type's default.
/// The name of a counter is written without `_total`: the text formats add it.
macro_rules! metrics {
    (@first $kind:ty) => { <$kind>::default() };
    (@first $kind:ty, $first:expr) => { $first };
    (
        $(#[$attribute:meta])*
        $group:ident {
            $($field:ident: $kind:ty $(= $first:expr)?, $name:literal, $help:literal;)*
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Debug)]
        pub(super) struct $group {
            $(pub(super) $field: $kind,)*
        }

        impl Default for $group {
            fn default() -> Self {
                Self { $($field: metrics!(@first $kind $(, $first)?),)* }
            }
        }

        impl $group {
            /// Adds each metric to the catalogue.
            pub(super) fn register(&self, catalogue: &mut $crate::observe::metrics::text::Catalogue) {
                $(catalogue.add($name, $help, self.$field.clone());)*
            }
        }
    };
}

pub(super) use metrics;
