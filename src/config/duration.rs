//! Durations as Go programs read and print them: `30s`, `1h2m3.5s`, `-300ms`, `24h0m0s`.

use std::fmt::{self, Write};
use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A signed number of nanoseconds, Go's `time.Duration`. It can be negative, so that validation can refuse a negative field by its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GoDuration(pub i64);

/// Units that Go knows, with their nanoseconds.
const UNITS: [(&str, f64); 8] = [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

impl GoDuration {
    /// This many seconds.
    #[must_use]
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds * 1_000_000_000)
    }

    /// This duration.
    #[must_use]
    pub const fn of(duration: Duration) -> Self {
        Self(duration.as_nanos() as i64)
    }

    /// Parses a duration; `None` if the text is invalid or the number is too large.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Some(Self(0));
        }
        if rest.is_empty() {
            return None;
        }
        let mut total = 0.0;
        while !rest.is_empty() {
            let (digits, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
            let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len()));
            let (_, nanoseconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
            total += digits.parse::<f64>().ok()? * nanoseconds;
            rest = tail;
        }
        // Just below 2^63. Larger numbers do not fit, as in Go.
        (total < 9.223_372_036e18).then_some(Self(total.round() as i64 * if negative { -1 } else { 1 }))
    }

    /// The unsigned duration; `None` if it is negative.
    #[must_use]
    pub fn positive(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }

    /// This duration, or the default if it is zero. In most of Kubernetes, zero means "the default".
    #[must_use]
    pub const fn or(self, default: Self) -> Self {
        if self.0 == 0 { default } else { self }
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanoseconds = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_char('-')?;
        }
        let (unit, size) = match nanoseconds {
            0 => return f.write_str("0s"),
            1..1_000 => ("ns", 1),
            1_000..1_000_000 => ("µs", 1_000),
            1_000_000..1_000_000_000 => ("ms", 1_000_000),
            _ => {
                let (hours, minutes) = (nanoseconds / 3_600_000_000_000, nanoseconds / 60_000_000_000 % 60);
                if hours > 0 {
                    write!(f, "{hours}h")?;
                }
                if hours > 0 || minutes > 0 {
                    write!(f, "{minutes}m")?;
                }
                return fraction(f, nanoseconds % 60_000_000_000, 1_000_000_000, "s");
            }
        };
        fraction(f, nanoseconds, size, unit)
    }
}

/// Writes a number of units with as many decimals as it needs.
fn fraction(f: &mut fmt::Formatter<'_>, nanoseconds: u64, size: u64, unit: &str) -> fmt::Result {
    write!(f, "{}", nanoseconds / size)?;
    let rest = nanoseconds % size;
    if rest > 0 {
        let width = size.ilog10() as usize;
        write!(f, ".{}", format!("{rest:0width$}").trim_end_matches('0'))?;
    }
    f.write_str(unit)
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not a duration (like 30s or 1m30s)")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed_and_printed_as_in_go() {
        for (text, nanoseconds, printed) in [
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("30s", 30_000_000_000, "30s"),
            ("90s", 90_000_000_000, "1m30s"),
            ("24h", 86_400_000_000_000, "24h0m0s"),
            ("1h2m3.5s", 3_723_500_000_000, "1h2m3.5s"),
            ("250ms", 250_000_000, "250ms"),
            ("1.5ms", 1_500_000, "1.5ms"),
            ("2us", 2_000, "2µs"),
            ("7ns", 7, "7ns"),
            ("-1s", -1_000_000_000, "-1s"),
            ("+5m", 300_000_000_000, "5m0s"),
        ] {
            let read = GoDuration::parse(text).unwrap_or_else(|| panic!("{text} is a duration"));
            assert_eq!((read.0, read.to_string().as_str()), (nanoseconds, printed), "{text}");
        }
        for text in ["", "5", "s", "-", "soon", "1d", "1..5s", "99999999999h"] {
            assert_eq!(GoDuration::parse(text), None, "{text}");
        }
    }
}
