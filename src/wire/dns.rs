//! Domain names as DHCP, DHCPv6 and router advertisements carry them: the encoding of DNS (RFC
//! 1035 3.1 and 4.1.4), without DNS.

use super::{Error, Result};

/// Bytes of the longest name, with its final zero (RFC 1035 2.3.4).
const MAX_NAME: usize = 255;

/// Bytes of the longest label.
const MAX_LABEL: usize = 63;

/// Offsets that a compression pointer can hold.
const MAX_POINTER: u16 = 0x3fff;

/// A domain name in wire form: labels with their lengths, ended by a zero byte. Never empty,
/// never longer than 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(Vec<u8>);

impl Name {
    /// The name written as `text`, with or without a final dot; `None` when it has no label, an
    /// empty or overlong one, or too many.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut bytes = Vec::with_capacity(text.len().saturating_add(2));
        for label in text.split('.') {
            let len = u8::try_from(label.len()).ok().filter(|len| *len > 0)?;
            if usize::from(len) > MAX_LABEL {
                return None;
            }
            bytes.push(len);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        (bytes.len() <= MAX_NAME).then_some(Self(bytes))
    }

    /// Reads an uncompressed name; returns it and what follows.
    ///
    /// # Errors
    /// [`Error::Truncated`] when `bytes` end first; [`Error::Malformed`] for the root, compression
    /// pointers and names that are too long.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8])> {
        let mut rest = bytes;
        loop {
            let (&len, behind) = rest.split_first().ok_or(Error::Truncated)?;
            if usize::from(len) > MAX_LABEL {
                return Err(Error::Malformed);
            }
            rest = behind.get(usize::from(len)..).ok_or(Error::Truncated)?;
            if len == 0 {
                break;
            }
        }
        let used = bytes.len().saturating_sub(rest.len());
        let name = bytes.get(..used).ok_or(Error::Truncated)?;
        if (2..=MAX_NAME).contains(&used) {
            Ok((Self(name.to_vec()), rest))
        } else {
            Err(Error::Malformed)
        }
    }

    /// The wire form, final zero included.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name without its first label; `None` at the root.
    fn parent(suffix: &[u8]) -> Option<&[u8]> {
        let len = usize::from(*suffix.first()?);
        if len == 0 { None } else { suffix.get(len + 1..) }
    }
}

/// The names one after the other, uncompressed (RFC 8415 10, RFC 8106 5.2).
pub fn concatenate(names: &[Name]) -> Vec<u8> {
    names.iter().flat_map(|name| name.0.iter().copied()).collect()
}

/// The names one after the other, each ending in a pointer to an earlier equal ending where there
/// is one (RFC 3397 2). Endings are equal label by label, never by bytes alone.
pub fn compress(names: &[Name]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut known: Vec<(&[u8], u16)> = Vec::new();
    for name in names {
        let mut suffix = name.as_bytes();
        loop {
            let Some(parent) = Name::parent(suffix) else {
                out.push(0);
                break;
            };
            if let Some((_, offset)) = known.iter().find(|(ending, _)| *ending == suffix) {
                out.extend_from_slice(&(0xc000 | offset).to_be_bytes());
                break;
            }
            if let Some(offset) = u16::try_from(out.len()).ok().filter(|at| *at <= MAX_POINTER) {
                known.push((suffix, offset));
            }
            out.extend_from_slice(suffix.strip_suffix(parent).unwrap_or(suffix));
            suffix = parent;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(texts: &[&str]) -> Vec<Name> {
        texts.iter().map(|text| Name::new(text).unwrap()).collect()
    }

    /// Follows pointers; a test may be wrong loudly.
    fn decompress(bytes: &[u8]) -> Vec<String> {
        let (mut at, mut found) = (0, Vec::new());
        while at < bytes.len() {
            let (mut labels, mut here, mut end) = (Vec::new(), at, None);
            loop {
                let len = usize::from(bytes[here]);
                if len >= 0xc0 {
                    end.get_or_insert(here + 2);
                    here = (len & 0x3f) << 8 | usize::from(bytes[here + 1]);
                } else if len == 0 {
                    end.get_or_insert(here + 1);
                    break;
                } else {
                    labels.push(String::from_utf8_lossy(&bytes[here + 1..][..len]).into_owned());
                    here += 1 + len;
                }
            }
            found.push(labels.join("."));
            at = end.unwrap();
        }
        found
    }

    #[test]
    fn texts_become_labels() {
        assert_eq!(Name::new("a.bc").unwrap().as_bytes(), b"\x01a\x02bc\x00");
        assert_eq!(Name::new("a.bc."), Name::new("a.bc"), "a final dot adds no label");
        let long = "x".repeat(63);
        let longest = [&long[..], &long, &long, &long[..61]].join(".");
        assert_eq!(Name::new(&longest).unwrap().as_bytes().len(), 255);
        for bad in ["", ".", "..", "a..b", ".a", &"x".repeat(64), &format!("{longest}x")] {
            assert_eq!(Name::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_example_of_rfc_3397_is_compressed_as_there() {
        let out = compress(&names(&["eng.apple.com.", "marketing.apple.com."]));
        assert_eq!(out, b"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04");
    }

    #[test]
    fn endings_are_compared_by_label() {
        let list = ["example.community", "a.example.com", "example.com", "b.example.community"];
        let out = compress(&names(&list));
        assert_eq!(decompress(&out), list);
        // "ample.com" ends "example.com" as text, not as a name.
        let list = ["example.com", "ample.com"];
        assert_eq!(decompress(&compress(&names(&list))), list);
    }

    #[test]
    fn a_pointer_may_have_any_low_byte() {
        // A name of 46 bytes in front: the pointer's low byte is then 46, which is '.'.
        let first = format!("{}.{}", "x".repeat(40), "yyy");
        let list = [&first[..], "b.org", "a.b.org"];
        let out = compress(&names(&list));
        assert!(out.ends_with(&[1, b'a', 0xc0, 46]));
        assert_eq!(decompress(&out), list);
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_back(
            list in prop::collection::vec("[ab]{1,3}(\\.[abc]{1,2}){0,4}", 0..8),
        ) {
            let list: Vec<&str> = list.iter().map(String::as_str).collect();
            let out = compress(&names(&list));
            prop_assert!(out.len() <= concatenate(&names(&list)).len());
            prop_assert_eq!(decompress(&out), list);
        }

        #[test]
        fn parsing_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok((name, rest)) = Name::parse(&bytes) {
                prop_assert_eq!([name.as_bytes(), rest].concat(), bytes);
            }
        }

        #[test]
        fn parse_undoes_new(text in "[a-z]{1,63}(\\.[a-z-]{1,20}){0,6}") {
            let name = Name::new(&text).unwrap();
            prop_assert_eq!(Name::parse(name.as_bytes()), Ok((name.clone(), &[][..])));
        }
    }
}
