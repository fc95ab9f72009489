//! POSIX access control lists in the form that Linux passes in `system.posix_acl_*` attributes, version 2.
//!
//! Owns parsing, validation and the algebra with mode bits (acl(5), POSIX.1e draft 17). Must not touch rows: a pure module.

use crate::limits::ACL_ENTRIES_MAX;
use smallvec::SmallVec;
use wire::Errno;

/// Name of the access ACL.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of the default ACL.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const HEAD: usize = 4;
const ENTRY: usize = 8;
const NO_ID: u32 = u32::MAX;

/// Whom an entry is about. The numbers are those of the attribute's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Tag {
    /// The file's owner.
    UserObj = 0x01,
    /// A user.
    User = 0x02,
    /// The file's group.
    GroupObj = 0x04,
    /// A group.
    Group = 0x08,
    /// Most that named users, named groups and the file's group get.
    Mask = 0x10,
    /// Everyone else.
    Other = 0x20,
}

impl Tag {
    fn from_u16(v: u16) -> Option<Self> {
        Some(match v {
            0x01 => Self::UserObj,
            0x02 => Self::User,
            0x04 => Self::GroupObj,
            0x08 => Self::Group,
            0x10 => Self::Mask,
            0x20 => Self::Other,
            _ => return None,
        })
    }
}

/// One entry: permission bits are rwx, 0..=7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whom.
    pub tag: Tag,
    /// What.
    pub perm: u16,
    /// User or group number of named entries.
    pub id: u32,
}

/// A valid list: owner, users, group, groups, mask (if anyone is named), other; in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(SmallVec<[Entry; 8]>);

impl Acl {
    /// Parses an attribute. `None`: an empty list, which stands for "no ACL".
    pub fn parse(value: &[u8]) -> Result<Option<Self>, Errno> {
        let (head, body) = value.split_at_checked(HEAD).ok_or(Errno::EINVAL)?;
        if head != VERSION.to_le_bytes() {
            return Err(Errno::EOPNOTSUPP);
        }
        if body.len() % ENTRY != 0 {
            return Err(Errno::EINVAL);
        }
        if body.is_empty() {
            return Ok(None);
        }
        if body.len() / ENTRY > ACL_ENTRIES_MAX {
            return Err(Errno::ENOSPC);
        }
        let mut list = SmallVec::new();
        for e in body.chunks_exact(ENTRY) {
            let tag = Tag::from_u16(u16::from_le_bytes([e[0], e[1]])).ok_or(Errno::EINVAL)?;
            let perm = u16::from_le_bytes([e[2], e[3]]);
            let id = u32::from_le_bytes([e[4], e[5], e[6], e[7]]);
            list.push(Entry { tag, perm, id });
        }
        let acl = Self(list);
        acl.validate()?;
        Ok(Some(acl))
    }

    /// The order and the required entries are those of the kernel's `posix_acl_valid`.
    fn validate(&self) -> Result<(), Errno> {
        let mut last = None;
        let mut named = false;
        for e in &self.0 {
            let is_named = matches!(e.tag, Tag::User | Tag::Group);
            named |= is_named;
            let repeats = last == Some(e.tag) && !is_named;
            let follows = match e.tag {
                Tag::UserObj => last.is_none(),
                _ => last.is_some_and(|l| l <= e.tag),
            };
            if e.perm > 7 || repeats || !follows || (is_named && e.id == NO_ID) {
                return Err(Errno::EINVAL);
            }
            last = Some(e.tag);
        }
        let has = |t| self.0.iter().any(|e| e.tag == t);
        let complete =
            has(Tag::UserObj) && has(Tag::GroupObj) && has(Tag::Other) && (!named || has(Tag::Mask));
        if complete { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// The attribute's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut v = Vec::with_capacity(HEAD + ENTRY * self.0.len());
        v.extend_from_slice(&VERSION.to_le_bytes());
        for e in &self.0 {
            let id = if matches!(e.tag, Tag::User | Tag::Group) { e.id } else { NO_ID };
            v.extend_from_slice(&(e.tag as u16).to_le_bytes());
            v.extend_from_slice(&e.perm.to_le_bytes());
            v.extend_from_slice(&id.to_le_bytes());
        }
        v
    }

    fn perm(&self, tag: Tag) -> Option<u32> {
        self.0.iter().find(|e| e.tag == tag).map(|e| u32::from(e.perm))
    }
    fn perm_mut(&mut self, tag: Tag) -> Option<&mut u16> {
        self.0.iter_mut().find(|e| e.tag == tag).map(|e| &mut e.perm)
    }
    /// The entry that the group bits of the mode show: the mask where there is one.
    fn group_class(&self) -> Tag {
        if self.perm(Tag::Mask).is_some() { Tag::Mask } else { Tag::GroupObj }
    }

    /// The nine permission bits that a file with this ACL shows.
    #[must_use]
    pub fn mode(&self) -> u32 {
        let p = |t| self.perm(t).unwrap_or(0);
        p(Tag::UserObj) << 6 | p(self.group_class()) << 3 | p(Tag::Other)
    }
    /// Do the mode bits say all of it? Then no ACL is stored.
    #[must_use]
    pub fn is_mode(&self) -> bool {
        self.0.iter().all(|e| matches!(e.tag, Tag::UserObj | Tag::GroupObj | Tag::Other))
    }
    /// chmod(2): owner, group class and other follow the mode.
    pub fn chmod(&mut self, mode: u32) {
        let class = self.group_class();
        for (tag, shift) in [(Tag::UserObj, 6), (class, 3), (Tag::Other, 0)] {
            if let Some(p) = self.perm_mut(tag) {
                *p = (mode >> shift & 7) as u16;
            }
        }
    }
    /// The access ACL of a new object under this default ACL, and its mode: each class gets what both the ACL and the
    /// requested mode allow. The umask plays no part.
    #[must_use]
    pub fn inherit(&self, mode: u32) -> (Self, u32) {
        let mut acl = self.clone();
        let class = acl.group_class();
        for (tag, shift) in [(Tag::UserObj, 6), (class, 3), (Tag::Other, 0)] {
            if let Some(p) = acl.perm_mut(tag) {
                *p &= (mode >> shift & 7) as u16;
            }
        }
        let mode = mode & !0o777 | acl.mode();
        (acl, mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut v = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            v.extend_from_slice(&tag.to_le_bytes());
            v.extend_from_slice(&perm.to_le_bytes());
            v.extend_from_slice(&id.to_le_bytes());
        }
        v
    }
    const FULL: &[(u16, u16, u32)] =
        &[(1, 7, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (8, 4, 100), (0x10, 6, NO_ID), (0x20, 1, NO_ID)];
    const MINIMAL: &[(u16, u16, u32)] = &[(1, 6, NO_ID), (4, 4, NO_ID), (0x20, 0, NO_ID)];

    #[test]
    fn validity_table() {
        let ok = |e: &[(u16, u16, u32)]| Acl::parse(&acl(e)).is_ok();
        assert!(ok(FULL) && ok(MINIMAL));
        assert!(!ok(&FULL[1..]), "owner is missing");
        assert!(!ok(&FULL[..5]), "other is missing");
        assert!(!ok(&[(1, 7, 0), (2, 6, 5), (4, 5, 0), (0x20, 1, 0)]), "named without mask");
        assert!(!ok(&[(4, 5, 0), (1, 7, 0), (0x20, 1, 0)]), "wrong order");
        assert!(!ok(&[(1, 7, 0), (1, 7, 0), (4, 5, 0), (0x20, 1, 0)]), "owner twice");
        assert!(!ok(&[(1, 8, 0), (4, 5, 0), (0x20, 1, 0)]), "bits beyond rwx");
        assert!(!ok(&[(1, 7, 0), (2, 6, NO_ID), (4, 5, 0), (0x10, 7, 0), (0x20, 1, 0)]), "no user number");
        assert!(!ok(&[(1, 7, 0), (3, 6, 5), (4, 5, 0), (0x20, 1, 0)]), "unknown tag");
        assert_eq!(Acl::parse(&[1, 0, 0, 0]), Err(Errno::EOPNOTSUPP));
        assert_eq!(Acl::parse(&[2, 0, 0]), Err(Errno::EINVAL));
        assert_eq!(Acl::parse(&[2, 0, 0, 0]), Ok(None));
        let many: Vec<_> = core::iter::once((1, 7, 0))
            .chain((0..2000).map(|i| (2, 7, i)))
            .chain([(4, 7, 0), (0x10, 7, 0), (0x20, 0, 0)])
            .collect();
        assert_eq!(Acl::parse(&acl(&many)), Err(Errno::ENOSPC));
    }

    #[test]
    fn modes() {
        let full = Acl::parse(&acl(FULL)).expect("valid").expect("not empty");
        assert_eq!((full.mode(), full.is_mode()), (0o761, false), "the group bits show the mask");
        assert_eq!(full.encode(), acl(FULL));
        let minimal = Acl::parse(&acl(MINIMAL)).expect("valid").expect("not empty");
        assert_eq!((minimal.mode(), minimal.is_mode()), (0o640, true));
        let mut c = full.clone();
        c.chmod(0o4640);
        assert_eq!(c.mode(), 0o640);
        assert_eq!(c.perm(Tag::GroupObj), Some(5), "chmod changes the mask, not the group");
        // acl(5): open(2) with 0666 under a default ACL that allows rwx: execute is not given to anybody.
        let (a, mode) = full.inherit(0o100_666);
        assert_eq!(mode, 0o100_660);
        assert_eq!(
            (a.perm(Tag::UserObj), a.perm(Tag::Mask), a.perm(Tag::Other)),
            (Some(6), Some(6), Some(0))
        );
        assert_eq!(a.perm(Tag::User), Some(6), "named entries stay, the mask limits them");
        let (a, mode) = minimal.inherit(0o40_777);
        assert_eq!((a.is_mode(), mode), (true, 0o40_640));
    }

    proptest! {
        #[test]
        fn any_bytes(v in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some(a)) = Acl::parse(&v) {
                prop_assert_eq!(Acl::parse(&a.encode()).map(|x| x.map(|x| x.mode())), Ok(Some(a.mode())));
            }
        }
    }
}
