//! The header fields of one request, as they came.
//!
//! Decides how much of them is kept, and what makes a request malformed whatever it asks for. One
//! buffer holds them all and is used again for the next request, so reading a request's fields
//! allocates nothing. Filled by `hpack`, read by `connection` and by whoever serves the request.
//!
//! Source: RFC 9113, sections 6.5.2 and 8.2 to 8.3.

/// What a field counts beyond its name and value.
const FIELD_OVERHEAD_BYTES: usize = 32;

/// Names and values in order.
#[derive(Debug)]
pub(in crate::serve) struct Fields {
    text: Vec<u8>,
    /// Where each name and each value ends.
    ends: Vec<(usize, usize)>,
    list_bytes: usize,
    list_bytes_max: usize,
}

/// What a request says before its other fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::serve) struct Pseudo<'a> {
    pub(in crate::serve) method: &'a [u8],
    pub(in crate::serve) path: &'a [u8],
    pub(in crate::serve) scheme: &'a [u8],
    pub(in crate::serve) authority: Option<&'a [u8]>,
}

/// The fields are not those of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Fields {
    pub(in crate::serve) const fn new(list_bytes_max: usize) -> Self {
        Self { text: Vec::new(), ends: Vec::new(), list_bytes: 0, list_bytes_max }
    }

    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
        self.list_bytes = 0;
    }

    /// Adds a field; beyond the limit it is only counted.
    pub(in crate::serve) fn push(&mut self, name: &[u8], value: &[u8]) {
        self.list_bytes += name.len() + value.len() + FIELD_OVERHEAD_BYTES;
        if self.list_bytes <= self.list_bytes_max {
            self.text.extend_from_slice(name);
            let name_end = self.text.len();
            self.text.extend_from_slice(value);
            self.ends.push((name_end, self.text.len()));
        }
    }

    /// Whether there were more than are kept.
    pub(super) const fn overflowed(&self) -> bool {
        self.list_bytes_max < self.list_bytes
    }

    /// All of them, in order.
    pub(in crate::serve) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |(name_end, end)| {
            let field = (&self.text[start..*name_end], &self.text[*name_end..*end]);
            start = *end;
            field
        })
    }

    /// The pseudo-fields, if these are the fields of a well-formed request.
    pub(super) fn check(&self) -> Result<Pseudo<'_>, Malformed> {
        let mut pseudo = Pseudo::default();
        let mut regular = false;
        for (name, value) in self.iter() {
            if name.first() != Some(&b':') {
                regular = true;
                check_regular(name, value)?;
                continue;
            }
            if regular {
                return Err(Malformed);
            }
            let place = match name {
                b":method" => &mut pseudo.method,
                b":path" => &mut pseudo.path,
                b":scheme" => &mut pseudo.scheme,
                b":authority" => pseudo.authority.get_or_insert_default(),
                _ => return Err(Malformed),
            };
            if !std::mem::replace(place, value).is_empty() || !is_value(value) {
                return Err(Malformed);
            }
        }
        let complete = [pseudo.method, pseudo.path, pseudo.scheme].iter().all(|it| !it.is_empty());
        if complete { Ok(pseudo) } else { Err(Malformed) }
    }

    /// The pseudo-fields of a request that was checked.
    pub(in crate::serve) fn pseudo(&self) -> Pseudo<'_> {
        let mut pseudo = Pseudo::default();
        for (name, value) in self.iter() {
            match name {
                b":method" => pseudo.method = value,
                b":path" => pseudo.path = value,
                b":scheme" => pseudo.scheme = value,
                b":authority" => pseudo.authority = Some(value),
                _ => return pseudo,
            }
        }
        pseudo
    }
}

fn check_regular(name: &[u8], value: &[u8]) -> Result<(), Malformed> {
    let of_connection = matches!(
        name,
        b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade"
    );
    let other_te = name == b"te" && value != b"trailers";
    if of_connection || other_te || !is_name(name) || !is_value(value) {
        return Err(Malformed);
    }
    Ok(())
}

/// Which bytes a name may have, as a table: every field of every request is looked at.
static NAME_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte: u8 = 0;
    while byte < 128 {
        table[byte as usize] = matches!(
            byte,
            b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'0'..=b'9' | b'^'..=b'z' | b'|' | b'~'
        );
        byte += 1;
    }
    table
};

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|byte| NAME_BYTES[usize::from(*byte)])
}

/// Without an early end, which makes it many bytes at a time.
fn is_value(value: &[u8]) -> bool {
    let bad = |byte: u8| (byte < b' ' && byte != b'\t') | (byte == 0x7f);
    !value.iter().fold(false, |found, byte| found | bad(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new(1000);
        for (name, value) in list {
            fields.push(name.as_bytes(), value.as_bytes());
        }
        fields
    }

    const GOOD: [(&str, &str); 4] =
        [(":method", "POST"), (":scheme", "http"), (":path", "/a"), ("te", "trailers")];

    #[test]
    fn request_has_each_pseudo_field_once_and_first() {
        let good = fields(&GOOD);
        assert_eq!(good.check(), Ok(good.pseudo()), "a request");
        assert_eq!(good.pseudo().path, b"/a");
        let bad: [&[(&str, &str)]; 9] = [
            &GOOD[..2],
            &[GOOD[3], GOOD[0], GOOD[1], GOOD[2]],
            &[GOOD[0], GOOD[0], GOOD[1], GOOD[2]],
            &[GOOD[0], GOOD[1], GOOD[2], (":status", "200")],
            &[GOOD[0], GOOD[1], GOOD[2], ("Upper", "x")],
            &[GOOD[0], GOOD[1], GOOD[2], ("", "x")],
            &[GOOD[0], GOOD[1], GOOD[2], ("a", "x\ny")],
            &[GOOD[0], GOOD[1], GOOD[2], ("connection", "close")],
            &[GOOD[0], GOOD[1], GOOD[2], ("te", "gzip")],
        ];
        for list in bad {
            assert_eq!(fields(list).check(), Err(Malformed), "{list:?}");
        }
    }

    #[test]
    fn fields_beyond_the_limit_are_counted_and_not_kept() {
        let mut fields = Fields::new(100);
        fields.push(b"a", &[b'x'; 50]);
        assert!(!fields.overflowed(), "83 bytes");
        fields.push(b"b", b"");
        assert!(fields.overflowed(), "116 bytes");
        assert_eq!(fields.iter().count(), 1, "the second is not kept");
        fields.clear();
        assert!(!fields.overflowed(), "empty again");
    }
}
