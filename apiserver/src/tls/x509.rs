//! Parses X.509 certificates of any version, and checks their signatures.

use rustls::pki_types::SignatureVerificationAlgorithm;

use crate::der::{Item, Reader, tag};

/// A parsed certificate.
#[derive(Debug)]
pub(super) struct Certificate<'a> {
    /// 1 to 3.
    version: u8,
    serial: &'a [u8],
    issuer: &'a [u8],
    subject: &'a [u8],
    /// Seconds since 1970.
    not_before: i64,
    not_after: i64,
    key: PublicKey<'a>,
    /// The signed part.
    signed: &'a [u8],
    signature_algorithm: &'a [u8],
    signature: &'a [u8],
}

/// A public key.
#[derive(Clone, Copy, Debug)]
pub(super) struct PublicKey<'a> {
    algorithm: &'a [u8],
    bits: &'a [u8],
}

impl<'a> Certificate<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut outer = Reader(Reader(bytes).expect(tag::SEQUENCE)?.content);
        let signed = outer.expect(tag::SEQUENCE)?;
        let signature_algorithm = outer.expect(tag::SEQUENCE)?.content;
        let signature = bits(outer.expect(tag::BIT_STRING)?)?;
        let mut fields = Reader(signed.content);
        let version = match fields.optional(tag::EXPLICIT_0) {
            Some(version) => Reader(version.content).expect(tag::INTEGER)?.content.first()? + 1,
            None => 1,
        };
        let serial = fields.expect(tag::INTEGER)?.content;
        fields.expect(tag::SEQUENCE)?;
        let issuer = fields.expect(tag::SEQUENCE)?.whole;
        let mut validity = Reader(fields.expect(tag::SEQUENCE)?.content);
        let (not_before, not_after) = (seconds(validity.next()?)?, seconds(validity.next()?)?);
        let subject = fields.expect(tag::SEQUENCE)?.whole;
        let mut key = Reader(fields.expect(tag::SEQUENCE)?.content);
        let key = PublicKey { algorithm: key.expect(tag::SEQUENCE)?.content, bits: bits(key.expect(tag::BIT_STRING)?)? };
        Some(Self { version, serial, issuer, subject, not_before, not_after, key, signed: signed.whole, signature_algorithm, signature })
    }

    pub(super) const fn version(&self) -> u8 {
        self.version
    }

    pub(super) const fn key(&self) -> PublicKey<'a> {
        self.key
    }

    /// The serial number in hexadecimal.
    pub(super) fn serial(&self) -> String {
        self.serial.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The subject, as `O=system:nodes,CN=system:node:a`.
    pub(super) fn subject(&self) -> String {
        let mut names = Vec::new();
        let mut parts = Reader(Reader(self.subject).next().map_or(&[][..], |name| name.content));
        while let Some(part) = parts.expect(tag::SET) {
            let pair = Reader(part.content).expect(tag::SEQUENCE).map_or(&[][..], |pair| pair.content);
            let mut pair = Reader(pair);
            let (Some(kind), Some(text)) = (pair.next(), pair.next()) else { continue };
            let kind = match kind.content {
                [0x55, 4, 3] => "CN",
                [0x55, 4, 10] => "O",
                [0x55, 4, 11] => "OU",
                _ => "?",
            };
            names.push(format!("{kind}={}", String::from_utf8_lossy(text.content)));
        }
        names.join(",")
    }

    /// True if the issuer's subject is this certificate's issuer, and the issuer's key signed this certificate.
    pub(super) fn is_signed_by(&self, issuer: &Certificate<'_>, algorithms: &[&dyn SignatureVerificationAlgorithm]) -> bool {
        let is_used = |algorithm: &&&dyn SignatureVerificationAlgorithm| *algorithm.signature_alg_id() == *self.signature_algorithm;
        self.issuer == issuer.subject
            && algorithms.iter().filter(is_used).any(|algorithm| issuer.key.verifies(*algorithm, self.signed, self.signature))
    }

    pub(super) const fn is_valid_at(&self, seconds: i64) -> bool {
        self.not_before <= seconds && seconds <= self.not_after
    }
}

impl PublicKey<'_> {
    pub(super) fn verifies(&self, algorithm: &dyn SignatureVerificationAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        *algorithm.public_key_alg_id() == *self.algorithm && algorithm.verify_signature(self.bits, message, signature).is_ok()
    }
}

/// The bytes of a bit string that has no unused bits.
fn bits(item: Item<'_>) -> Option<&[u8]> {
    item.content.split_first().filter(|(unused, _)| **unused == 0).map(|(_, bits)| bits)
}

/// Converts `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` to seconds since 1970.
fn seconds(item: Item<'_>) -> Option<i64> {
    let text = str::from_utf8(item.content).ok()?.strip_suffix('Z')?;
    let (years, rest) = match item.tag {
        tag::UTC_TIME => {
            let years: i64 = text.get(..2)?.parse().ok()?;
            (if years < 50 { 2000 + years } else { 1900 + years }, text.get(2..)?)
        }
        tag::GENERALIZED_TIME => (text.get(..4)?.parse().ok()?, text.get(4..)?),
        _ => return None,
    };
    let part = |start: usize| rest.get(start..start + 2).and_then(|part| part.parse::<i64>().ok());
    let (month, day, hour, minute, second) = (part(0)?, part(2)?, part(4)?, part(6)?, part(8)?);
    // Years start in March here, so that the leap day is the last day.
    let (year, month) = if month > 2 { (years, month - 3) } else { (years - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_converted_to_seconds_since_1970() {
        for (tag, text, expected) in [
            (tag::UTC_TIME, "700101000000Z", Some(0)),
            (tag::UTC_TIME, "240229235959Z", Some(1_709_251_199)),
            (tag::UTC_TIME, "491231000000Z", Some(2_524_521_600)),
            (tag::GENERALIZED_TIME, "20000229000000Z", Some(951_782_400)),
            (tag::GENERALIZED_TIME, "21000301000000Z", Some(4_107_542_400)),
            (tag::UTC_TIME, "700101000000", None),
            (tag::INTEGER, "700101000000Z", None),
        ] {
            assert_eq!(seconds(Item { tag, content: text.as_bytes(), whole: b"" }), expected, "{text}");
        }
    }
}
