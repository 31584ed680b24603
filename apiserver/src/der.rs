//! Reads and writes DER values, as far as certificates and keys need it.

/// The tags of certificates and keys.
pub(crate) mod tag {
    pub(crate) const INTEGER: u8 = 0x02;
    pub(crate) const BIT_STRING: u8 = 0x03;
    pub(crate) const OCTET_STRING: u8 = 0x04;
    pub(crate) const OBJECT_IDENTIFIER: u8 = 0x06;
    pub(crate) const UTC_TIME: u8 = 0x17;
    pub(crate) const GENERALIZED_TIME: u8 = 0x18;
    pub(crate) const SEQUENCE: u8 = 0x30;
    pub(crate) const SET: u8 = 0x31;
    /// `[0] EXPLICIT`.
    pub(crate) const EXPLICIT_0: u8 = 0xa0;
}

/// One DER value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item<'a> {
    pub(crate) tag: u8,
    pub(crate) content: &'a [u8],
    /// Tag, length and content.
    pub(crate) whole: &'a [u8],
}

/// Reads consecutive values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// Reads the next value; `None` at the end, and if the rest is malformed.
    pub(crate) fn next(&mut self) -> Option<Item<'a>> {
        let (tag, first) = (*self.0.first()?, *self.0.get(1)?);
        let (start, length) = match first {
            0..=0x7f => (2, usize::from(first)),
            0x81..=0x84 => {
                let start = 2 + usize::from(first & 0x7f);
                (start, self.0.get(2..start)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
            }
            _ => return None,
        };
        let end = start.checked_add(length)?;
        let item = Item { tag, content: self.0.get(start..end)?, whole: self.0.get(..end)? };
        self.0 = self.0.get(end..)?;
        Some(item)
    }

    /// Reads the next value; `None` if it does not have this tag.
    pub(crate) fn expect(&mut self, tag: u8) -> Option<Item<'a>> {
        self.next().filter(|item| item.tag == tag)
    }

    /// Reads the next value only if it has this tag.
    pub(crate) fn optional(&mut self, tag: u8) -> Option<Item<'a>> {
        if self.0.first() == Some(&tag) { self.next() } else { None }
    }
}

/// Writes a value whose content consists of these parts.
pub(crate) fn write(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut value = vec![tag];
    if content.len() < 0x80 {
        value.push(content.len() as u8);
    } else {
        let length = content.len().to_be_bytes();
        let length: Vec<_> = length.iter().copied().skip_while(|byte| *byte == 0).collect();
        value.push(0x80 | length.len() as u8);
        value.extend(length);
    }
    value.extend(content);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_values_are_read_back() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0x1_2345] {
            let content = vec![7; length];
            let value = [write(tag::OCTET_STRING, &[&content]), write(tag::INTEGER, &[b"\x05"])].concat();
            let mut reader = Reader(&value);
            assert!(reader.optional(tag::SEQUENCE).is_none());
            let item = reader.expect(tag::OCTET_STRING).expect("the reader returns the value");
            assert_eq!((item.content, item.whole.len()), (&*content, value.len() - 3));
            assert_eq!(reader.next().map(|item| item.content), Some(&b"\x05"[..]));
            assert!(reader.next().is_none());
        }
    }

    #[test]
    fn malformed_values_are_refused() {
        for bytes in
            [&b""[..], b"\x02", b"\x02\x05\x01", b"\x02\x80", b"\x02\x85\x01\x01\x01\x01\x01", b"\x02\x82\x01", b"\x02\x84\xff\xff\xff\xff"]
        {
            assert!(Reader(bytes).next().is_none(), "{bytes:?}");
        }
    }
}
