//! The fixed parts of pages as bytes: headers, elements and meta pages.
//!
//! Decides nothing but the layout; little endian throughout. Called by the writer and the reader.

use std::fmt;

/// The size of the pages that the writer makes, in bytes. Etcd finds the trailing hash of a backup
/// by the file's length modulo 512, so it must be a multiple of that.
pub const PAGE_BYTES: usize = 4096;
const _: () =
    assert!(PAGE_BYTES.is_multiple_of(512), "the trailing hash of a backup must be findable");

/// The longest key that bbolt accepts.
pub const KEY_BYTES_MAX: usize = 32_768;
/// The longest value that bbolt accepts.
pub const VALUE_BYTES_MAX: usize = (1 << 31) - 2;

/// The page header in front of everything.
pub(super) const HEADER_BYTES: usize = 16;
/// An element of a leaf or of a branch.
pub(super) const ELEMENT_BYTES: usize = 16;
/// Where a bucket's root is: page (0: inline) and sequence.
pub(super) const BUCKET_BYTES: usize = 16;
/// The meta record with its checksum.
pub(super) const META_BYTES: usize = 64;
/// Buckets up to this size lie within their parent's leaf.
pub(super) const INLINE_BYTES_MAX: usize = PAGE_BYTES / 4;
/// The count that means "too many to count here".
pub(super) const COUNT_OVERFLOW: u16 = 0xFFFF;
/// Most elements of one page.
pub(super) const COUNT_MAX: u16 = COUNT_OVERFLOW - 1;
/// The flag of a leaf element that is a bucket.
pub(super) const ELEMENT_BUCKET: u32 = 1;
/// The free list's page number when none was written.
const FREELIST_NONE: u64 = u64::MAX;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;

const _: () =
    assert!(KEY_BYTES_MAX <= u16::MAX as usize, "a plan keeps the length of a key in two bytes");

/// The number of a page in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u64);

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Branch,
    Leaf,
    Meta,
    Freelist,
}

impl Kind {
    const fn flags(self) -> u16 {
        match self {
            Self::Branch => 1,
            Self::Leaf => 2,
            Self::Meta => 4,
            Self::Freelist => 0x10,
        }
    }

    /// The kind that `flags` stand for; exactly one must be set.
    pub(super) const fn of(flags: u16) -> Option<Self> {
        match flags {
            1 => Some(Self::Branch),
            2 => Some(Self::Leaf),
            4 => Some(Self::Meta),
            0x10 => Some(Self::Freelist),
            _ => None,
        }
    }
}

/// The header of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: PageId,
    pub(super) flags: u16,
    pub(super) count: u16,
    /// How many pages follow that belong to this one.
    pub(super) overflow: u32,
}

impl Header {
    pub(super) const fn new(id: PageId, kind: Kind, count: u16, overflow: u32) -> Self {
        Self { id, flags: kind.flags(), count, overflow }
    }

    pub(super) fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.overflow.to_le_bytes());
    }

    /// Reads the first [`HEADER_BYTES`] of `bytes`; `None` if there are fewer.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            id: PageId(u64_at(bytes, 0)?),
            flags: u16_at(bytes, 8)?,
            count: u16_at(bytes, 10)?,
            overflow: u32_at(bytes, 12)?,
        })
    }
}

/// An element of a leaf: `position` counts from its own first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeafElement {
    pub(super) flags: u32,
    pub(super) position: u32,
    pub(super) key_bytes: u32,
    pub(super) value_bytes: u32,
}

impl LeafElement {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        for field in [self.flags, self.position, self.key_bytes, self.value_bytes] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    /// Reads the element at `offset`; `None` past the end.
    pub(super) fn decode(bytes: &[u8], offset: usize) -> Option<Self> {
        Some(Self {
            flags: u32_at(bytes, offset)?,
            position: u32_at(bytes, offset + 4)?,
            key_bytes: u32_at(bytes, offset + 8)?,
            value_bytes: u32_at(bytes, offset + 12)?,
        })
    }
}

/// An element of a branch: `position` counts from its own first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BranchElement {
    pub(super) position: u32,
    pub(super) key_bytes: u32,
    pub(super) child: PageId,
}

impl BranchElement {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.position.to_le_bytes());
        out.extend_from_slice(&self.key_bytes.to_le_bytes());
        out.extend_from_slice(&self.child.0.to_le_bytes());
    }

    /// Reads the element at `offset`; `None` past the end.
    pub(super) fn decode(bytes: &[u8], offset: usize) -> Option<Self> {
        Some(Self {
            position: u32_at(bytes, offset)?,
            key_bytes: u32_at(bytes, offset + 4)?,
            child: PageId(u64_at(bytes, offset + 8)?),
        })
    }
}

/// What a meta page says about the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) page_bytes: u32,
    pub(super) root: PageId,
    pub(super) root_sequence: u64,
    /// `None` if the writer of the file kept its free list to itself.
    pub(super) freelist: Option<PageId>,
    /// The first page number that was never used.
    pub(super) high_water: u64,
    pub(super) txid: u64,
}

/// Why a meta page is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetaFault {
    Magic,
    Version,
    Checksum,
}

impl Meta {
    /// Appends the record and its checksum.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        for field in [MAGIC, VERSION, self.page_bytes, 0] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        let freelist = self.freelist.map_or(FREELIST_NONE, |page| page.0);
        for field in [self.root.0, self.root_sequence, freelist, self.high_water, self.txid] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        let checksum = fnv1a(&out[start..]);
        out.extend_from_slice(&checksum.to_le_bytes());
        assert!(out.len() - start == META_BYTES, "a meta record has {META_BYTES} bytes");
    }

    /// Reads the record at the start of `bytes`.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, MetaFault> {
        let record = bytes.get(..META_BYTES).ok_or(MetaFault::Magic)?;
        let word = |offset| u32_at(record, offset).unwrap_or(0);
        let long = |offset| u64_at(record, offset).unwrap_or(0);
        if word(0) != MAGIC {
            return Err(MetaFault::Magic);
        }
        if word(4) != VERSION {
            return Err(MetaFault::Version);
        }
        if long(56) != fnv1a(&record[..56]) {
            return Err(MetaFault::Checksum);
        }
        let freelist = long(32);
        Ok(Self {
            page_bytes: word(8),
            root: PageId(long(16)),
            root_sequence: long(24),
            freelist: (freelist != FREELIST_NONE).then_some(PageId(freelist)),
            high_water: long(40),
            txid: long(48),
        })
    }
}

/// FNV-1a in 64 bits, as the meta checksum wants it.
fn fnv1a(bytes: &[u8]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in bytes {
        hash ^= u64::from(*byte);
        hash = hash.wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array_at(bytes, offset).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array_at(bytes, offset).map(u32::from_le_bytes)
}

/// The little-endian number at `offset`; `None` past the end.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    array_at(bytes, offset).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_survives_a_round_trip_and_a_flipped_bit_does_not() {
        let meta = Meta {
            page_bytes: 4096,
            root: PageId(7),
            root_sequence: 0,
            freelist: None,
            high_water: 9,
            txid: 3,
        };
        let mut bytes = Vec::new();
        meta.encode(&mut bytes);
        assert_eq!(Meta::decode(&bytes), Ok(meta));
        bytes[20] ^= 1;
        assert_eq!(Meta::decode(&bytes), Err(MetaFault::Checksum));
    }

    #[test]
    fn checksum_is_the_published_fnv1a() {
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
