//! Determines which users count as one: in a user namespace, a user can act as any of its subordinate users, see
//! subuid(5).

use super::scheduler::Owner;
use std::fs;
use std::ops::Range;
use std::path::Path;

/// The ranges of users that belong to one owner.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    ranges: Vec<(Range<u64>, Owner)>,
}

impl Owners {
    /// Reads `/etc/subuid`. Without that file, no user has subordinate users.
    pub fn of_this_host() -> Self {
        Self::parse(&fs::read_to_string(Path::new("/etc/subuid")).unwrap_or_default())
    }

    /// Parses lines `NAME:FIRST:COUNT`. Other lines are ignored, as the programs that use the file do.
    pub fn parse(text: &str) -> Self {
        let mut ranges = Vec::new();
        let mut owners: Vec<(&str, Owner)> = Vec::new();
        for line in text.lines() {
            let mut parts = line.trim().split(':');
            let (Some(name), Some(Ok(first)), Some(Ok(count)), None) =
                (parts.next(), parts.next().map(str::parse::<u32>), parts.next().map(str::parse::<u32>), parts.next())
            else {
                continue;
            };
            // All ranges of a name belong to one owner, whose number is the first user of the first range.
            let owner = match owners.iter().find(|(known, _)| *known == name) {
                Some((_, owner)) => *owner,
                None => {
                    owners.push((name, first));
                    first
                }
            };
            ranges.push((u64::from(first)..u64::from(first) + u64::from(count), owner));
        }
        Self { ranges }
    }

    /// Returns the owner of a process of this user.
    pub(super) fn of(&self, user: u32) -> Owner {
        self.ranges.iter().find(|(range, _)| range.contains(&u64::from(user))).map_or(user, |(_, owner)| *owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_users_have_one_owner_and_other_users_own_themselves() {
        let text =
            "me:100000:65536\nyou:200000:10\n\n# no line\nme:300000:1\nx:y:z\nmore:1:2:3\nlast:4294967295:4294967295\n";
        let owners = Owners::parse(text);
        let found = [0, 1000, 99_999, 100_000, 165_535, 165_536, 200_009, 200_010, 300_000, u32::MAX]
            .map(|user| owners.of(user));
        assert_eq!(found, [0, 1000, 99_999, 100_000, 100_000, 165_536, 200_000, 200_010, 100_000, u32::MAX]);
    }
}
