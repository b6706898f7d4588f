//! Who we run as: `--runas`, and `nobody` for those who start us as root.

use super::Error;
use crate::sys::error_text;
use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User, setgroups, setresgid, setresuid};
use std::fmt;
use std::str::FromStr;

/// The overflow ids, for systems without a user `nobody`.
const NOBODY: Identity = Identity { uid: 65534, gid: 65534 };

/// A user and a group to run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The value of `--runas`: `UID`, `UID:GID`, `LOGIN` or `LOGIN:GROUP`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunAs {
    user: Name,
    group: Option<Name>,
}

/// A user or a group as it is typed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Number(u32),
    Text(String),
}

/// Why a `--runas` is no good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunAsError {
    /// Not of one of the four forms.
    Syntax(String),
    /// No such user.
    NoUser(String),
    /// No such group.
    NoGroup(String),
}

impl fmt::Display for RunAsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(text) => write!(f, "Invalid --runas option: {text}"),
            Self::NoUser(name) => write!(f, "Invalid --runas option: no user {name}"),
            Self::NoGroup(name) => write!(f, "Invalid --runas option: no group {name}"),
        }
    }
}

impl std::error::Error for RunAsError {}

/// A number as C writes it: decimal, `0x` hexadecimal, or octal with a leading zero. The largest
/// id is taken by the kernel for "unchanged".
fn number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix('0') {
        Some(rest) => match rest.strip_prefix(['x', 'X']) {
            Some(hex) => (hex, 16),
            None if rest.is_empty() => (text, 10),
            None => (rest, 8),
        },
        None => (text, 10),
    };
    let clean = digits.bytes().all(|b| b.is_ascii_alphanumeric());
    u32::from_str_radix(digits, radix).ok().filter(|&n| clean && n != u32::MAX)
}

impl Name {
    /// Text that begins with a digit is a number or nothing.
    fn parse(text: &str) -> Option<Self> {
        match text.bytes().next()? {
            b'0'..=b'9' => number(text).map(Self::Number),
            _ => Some(Self::Text(text.to_owned())),
        }
    }
}

impl FromStr for RunAs {
    type Err = RunAsError;

    fn from_str(text: &str) -> Result<Self, RunAsError> {
        let syntax = || RunAsError::Syntax(text.to_owned());
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(Name::parse(group).ok_or_else(syntax)?)),
            None => (text, None),
        };
        Ok(Self { user: Name::parse(user).ok_or_else(syntax)?, group })
    }
}

impl RunAs {
    /// Looks up names in the system's databases. A number alone is user and group; a name alone
    /// brings its primary group.
    pub fn resolve(&self) -> Result<Identity, RunAsError> {
        let (uid, primary) = match &self.user {
            Name::Number(n) => (*n, *n),
            Name::Text(name) => {
                let no_user = || RunAsError::NoUser(name.clone());
                let user = User::from_name(name).ok().flatten().ok_or_else(no_user)?;
                (user.uid.as_raw(), user.gid.as_raw())
            }
        };
        let gid = match &self.group {
            None => primary,
            Some(Name::Number(n)) => *n,
            Some(Name::Text(name)) => {
                let no_group = || RunAsError::NoGroup(name.clone());
                Group::from_name(name).ok().flatten().ok_or_else(no_group)?.gid.as_raw()
            }
        };
        Ok(Identity { uid, gid })
    }
}

impl Identity {
    /// Who we are now.
    pub fn current() -> Self {
        Self { uid: Uid::effective().as_raw(), gid: Gid::effective().as_raw() }
    }

    /// Who to run as: as `--runas` says, else as we are, unless that is the machine's root.
    pub fn choose(run_as: Option<&RunAs>) -> Result<Self, RunAsError> {
        let current = Self::current();
        match run_as {
            Some(run_as) => run_as.resolve(),
            None if current.uid == 0 && in_initial_user_namespace() => {
                log::info!("Started as root, will change to nobody.");
                let user = User::from_name("nobody").ok().flatten();
                let known = |u: User| Self { uid: u.uid.as_raw(), gid: u.gid.as_raw() };
                Ok(user.map_or(NOBODY, known))
            }
            None => Ok(current),
        }
    }

    /// Becomes this user: real, effective and saved ids, and no supplementary groups.
    pub(super) fn assume(self) -> Result<(), Error> {
        match setgroups(&[]) {
            // Ordinary users may not drop groups, nor may root of a namespace that denies it.
            Ok(()) | Err(Errno::EPERM) => {}
            Err(e) => return Err(Error::User { identity: self, source: e.into() }),
        }
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setresgid(gid, gid, gid)
            .and_then(|()| setresuid(uid, uid, uid))
            .map_err(|e| Error::User { identity: self, source: e.into() })
    }
}

/// Whether user 0 is the machine's root: the initial user namespace, and only that one, maps
/// every id to itself.
fn in_initial_user_namespace() -> bool {
    match std::fs::read_to_string("/proc/self/uid_map") {
        Ok(map) => is_identity_map(&map),
        Err(e) => {
            log::debug!("can't read uid_map, taking root for real: {}", error_text(&e));
            true
        }
    }
}

fn is_identity_map(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_forms_are_taken_and_others_refused() {
        let num = Name::Number;
        let text = |s: &str| Name::Text(s.to_owned());
        let good = [
            ("0", num(0), None),
            ("1000", num(1000), None),
            ("0x3e8", num(1000), None),
            ("0X3E8", num(1000), None),
            ("01750", num(1000), None),
            ("1000:100", num(1000), Some(num(100))),
            ("nobody", text("nobody"), None),
            ("nobody:nogroup", text("nobody"), Some(text("nogroup"))),
            ("nobody:0", text("nobody"), Some(num(0))),
            ("1:wheel", num(1), Some(text("wheel"))),
        ];
        for (typed, user, group) in good {
            assert_eq!(typed.parse(), Ok(RunAs { user, group }), "{typed}");
        }
        for typed in ["", ":", "1:", ":1", "1x", "08", "0x", "4294967295", "4294967296", "1:2:3"] {
            let expected = Err(RunAsError::Syntax(typed.to_owned()));
            assert_eq!(typed.parse::<RunAs>(), expected, "{typed}");
        }
    }

    #[test]
    fn a_number_alone_is_user_and_group_and_a_name_brings_its_group() {
        let resolve = |typed: &str| typed.parse::<RunAs>().expect("parses").resolve();
        assert_eq!(resolve("77"), Ok(Identity { uid: 77, gid: 77 }));
        assert_eq!(resolve("77:78"), Ok(Identity { uid: 77, gid: 78 }));
        // BETTER than a refusal: root by name is as good as 0.
        assert_eq!(resolve("root"), Ok(Identity { uid: 0, gid: 0 }));
        assert_eq!(resolve("root:9"), Ok(Identity { uid: 0, gid: 9 }));
        assert_eq!(resolve("no such user"), Err(RunAsError::NoUser("no such user".into())));
        assert_eq!(resolve("0:no such group"), Err(RunAsError::NoGroup("no such group".into())));
    }

    #[test]
    fn only_the_initial_namespace_maps_all_ids_to_themselves() {
        assert!(is_identity_map("         0          0 4294967295\n"));
        assert!(!is_identity_map("         0       1000          1\n"));
        assert!(!is_identity_map("         0          0          1\n"));
        assert!(!is_identity_map(""));
        assert!(!is_identity_map("0 0 4294967295\n 1 1 1\n"));
    }
}
