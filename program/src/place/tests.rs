use super::*;
use nix::unistd::{Gid, chown};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

/// A user without privileges, like a machine's user.
const STRANGER: u32 = 65534;

fn give_away(path: &Path) {
    nix::unistd::fchownat(
        AT_FDCWD,
        path,
        Some(Uid::from_raw(STRANGER)),
        Some(Gid::from_raw(STRANGER)),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .unwrap();
}

/// A directory of another user, next to a file and a directory of root.
struct Host {
    root: tempfile::TempDir,
}

impl Host {
    fn new() -> Option<Self> {
        if !geteuid().is_root() {
            testing::skipped("needs root: the test shows that root is not tricked by another user's files");
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(root.path().join("shadow"), "secret").unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::create_dir(root.path().join("state")).unwrap();
        give_away(&root.path().join("state"));
        Some(Self { root })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn link(&self, target: &str, name: &str) {
        symlink(self.path(target), self.path(name)).unwrap();
        give_away(&self.path(name));
    }
}

#[test]
fn root_does_not_follow_another_users_link_to_its_own_file() {
    let Some(host) = Host::new() else { return };
    host.link("shadow", "state/disk.img");
    let place = Place::of(&host.path("state/disk.img")).unwrap();
    let error = place.open(OFlag::O_RDONLY).unwrap_err().to_string();
    assert!(error.contains("root does not follow a symbolic link of nobody to a file of root"), "{error}");
    assert!(place.replace(b"forged", 0o644, None).is_err());
    assert_eq!(fs::read(host.path("shadow")).unwrap(), b"secret");
}

#[test]
fn root_creates_nothing_through_another_users_link() {
    let Some(host) = Host::new() else { return };
    host.link("etc", "state/sub");
    assert!(Directory::make(&host.path("state/sub/deeper"), 0o755, None).is_err());
    assert!(Place::of(&host.path("state/sub/new")).unwrap().create().is_err());
    assert!(Place::of(&host.path("state/sub/new")).unwrap().replace(b"x", 0o644, None).is_err());
    assert!(Place::of(&host.path("state/sub/new")).unwrap().open_or_create(0o644).is_err());
    host.link("etc/cron", "state/dangling");
    assert!(Place::of(&host.path("state/dangling")).unwrap().open_or_create(0o644).is_err());
    assert_eq!(fs::read_dir(host.path("etc")).unwrap().count(), 0);
}

#[test]
fn links_of_root_and_links_to_ones_own_files_are_followed() {
    let Some(host) = Host::new() else { return };
    symlink(host.path("shadow"), host.path("state/by-root")).unwrap();
    let mut text = String::new();
    let mut file = Place::of(&host.path("state/by-root")).unwrap().open(OFlag::O_RDONLY).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "secret");
    fs::write(host.path("state/own.img"), "own").unwrap();
    give_away(&host.path("state/own.img"));
    host.link("state/own.img", "state/disk.img");
    assert_eq!(Place::of(&host.path("state/disk.img")).unwrap().read().unwrap().unwrap().0, b"own");
}

#[test]
fn a_hard_link_to_a_file_of_root_is_not_opened() {
    let Some(host) = Host::new() else { return };
    fs::hard_link(host.path("shadow"), host.path("state/disk.img")).unwrap();
    let error = Place::of(&host.path("state/disk.img")).unwrap().open(OFlag::O_RDONLY).unwrap_err().to_string();
    assert!(error.contains("hard link in a directory of nobody"), "{error}");
}

#[test]
fn replacing_a_file_sets_its_mode_and_leaves_its_hard_links_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let (victim, path) = (directory.path().join("victim"), directory.path().join("web.json"));
    fs::write(&victim, "untouched").unwrap();
    fs::hard_link(&victim, &path).unwrap();
    Place::of(&path).unwrap().replace(b"new", 0o640, None).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"untouched");
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn a_new_file_never_overwrites_and_is_removed_when_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::with_parents(&directory.path().join("a/b/disk.img"), 0o750, None).unwrap();
    drop(place.create().unwrap());
    let new = place.create().unwrap();
    fs::write(place.path(), "the user's").unwrap();
    assert_eq!(new.finish(0o660, None).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(place.path()).unwrap(), b"the user's");
    assert_eq!(fs::read_dir(directory.path().join("a/b")).unwrap().count(), 1);
    assert_eq!(fs::metadata(directory.path().join("a")).unwrap().mode() & 0o7777, 0o750);
}

#[test]
fn a_file_is_created_under_a_temporary_name_where_unnamed_files_are_unsupported() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::of(&directory.path().join("disk.img")).unwrap();
    let (file, name) = place.create_named().unwrap();
    let new = NewFile { file, place: &place, temporary_name: Some(name) };
    new.finish(0o600, None).unwrap();
    let (file, name) = place.create_named().unwrap();
    let new = NewFile { file, place: &place, temporary_name: Some(name) };
    assert_eq!(new.finish(0o600, None).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn pipes_and_directories_are_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    nix::unistd::mkfifo(&directory.path().join("pipe"), Mode::S_IRWXU).unwrap();
    let error = Place::of(&directory.path().join("pipe")).unwrap().open(OFlag::O_RDONLY).unwrap_err().to_string();
    assert!(error.contains("neither a file nor a block device"), "{error}");
    fs::create_dir(directory.path().join("d")).unwrap();
    assert!(Place::of(&directory.path().join("d")).unwrap().open(OFlag::O_RDONLY).is_err());
    symlink("loop", directory.path().join("loop")).unwrap();
    assert!(Place::of(&directory.path().join("loop")).is_err());
}

#[test]
fn paths_are_resolved_as_the_kernel_resolves_them() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    fs::create_dir_all(root.join("a/b")).unwrap();
    symlink("a/b", root.join("near")).unwrap();
    symlink(root.join("a"), root.join("far")).unwrap();
    for (path, expected) in [("near/../x", "a/x"), ("far/b/./x", "a/b/x"), ("a//b/../../x", "x")] {
        assert_eq!(Place::of(&root.join(path)).unwrap().path(), root.join(expected), "{path}");
    }
    let owner = Place::of(&root.join("x")).unwrap().directory().owner().unwrap();
    assert_eq!(owner, geteuid());
    // Only root can change the owner of a file.
    if geteuid().is_root() {
        chown(&root.join("a"), Some(Uid::from_raw(STRANGER)), None).unwrap();
        assert_eq!(Directory::open(&root.join("a")).unwrap().owner().unwrap(), Uid::from_raw(STRANGER));
    }
}

#[test]
fn root_refuses_to_read_another_users_file_or_link_as_its_own() {
    let Some(host) = Host::new() else { return };
    fs::write(host.path("state/flake"), "github:good/flake").unwrap();
    symlink("/nix/store/good", host.path("state/current")).unwrap();
    let at = |name: &str| Place::nofollow(&host.path(name)).unwrap();
    assert_eq!(at("state/flake").read_own().unwrap(), b"github:good/flake");
    assert_eq!(at("state/current").read_own_link().unwrap(), Path::new("/nix/store/good"));
    give_away(&host.path("state/flake"));
    give_away(&host.path("state/current"));
    let error = at("state/flake").read_own().unwrap_err().to_string();
    assert_eq!(error, "it belongs to nobody, and root uses only files that no other user can change");
    assert!(at("state/current").read_own_link().is_err());
}

#[test]
fn root_refuses_to_run_a_program_that_the_machines_user_can_replace() {
    let Some(host) = Host::new() else { return };
    let nobody = Identity::of("nobody").unwrap();
    for name in ["state/script", "etc/script"] {
        fs::write(host.path(name), "#!/bin/sh").unwrap();
    }
    require_not_modifiable_by(&host.path("etc/script"), &nobody).unwrap();
    let error = require_not_modifiable_by(&host.path("state/script"), &nobody).unwrap_err().to_string();
    assert!(error.contains("root does not run it, because nobody can change"), "{error}");
    symlink(host.path("state/script"), host.path("etc/link")).unwrap();
    require_not_modifiable_by(&host.path("etc/link"), &nobody).unwrap_err();
    // The user could point a link in the own directory to another program after the check.
    host.link("etc/script", "state/link");
    symlink(host.path("etc/script"), host.path("state/roots-link")).unwrap();
    for link in ["state/link", "state/roots-link", "etc/../state/link"] {
        let error = require_not_modifiable_by(&host.path(link), &nobody).unwrap_err().to_string();
        assert!(error.contains("root does not run it, because nobody can change"), "{link}: {error}");
    }
    symlink(host.path("etc/script"), host.path("etc/good-link")).unwrap();
    require_not_modifiable_by(&host.path("etc/good-link"), &nobody).unwrap();
    fs::set_permissions(host.path("etc"), fs::Permissions::from_mode(0o777)).unwrap();
    require_not_modifiable_by(&host.path("etc/script"), &nobody).unwrap_err();
}

#[test]
fn checking_whether_a_file_could_be_created_creates_nothing_and_agrees_with_creating_it() {
    let Some(host) = Host::new() else { return };
    host.link("etc", "state/link");
    for (path, is_possible) in [
        ("state/var.img", true),
        ("state/images/deep/var.img", true),
        ("etc/images/var.img", true),
        ("state/link/var.img", false),
        ("state/link/images/var.img", false),
        ("shadow/var.img", false),
    ] {
        let path = host.path(path);
        let parent = path.parent().unwrap();
        let existed = parent.exists();
        assert_eq!(Place::check_create_with_parents(&path).is_ok(), is_possible, "{}", path.display());
        assert_eq!(parent.exists(), existed, "{}", path.display());
        let made = Place::with_parents(&path, 0o755, None).and_then(|place| place.open_or_create(0o600));
        assert_eq!(made.is_ok(), is_possible, "{}", path.display());
    }
    Directory::check_make(&host.path("state/new/directory")).unwrap();
    assert!(!host.path("state/new").exists());
    Directory::check_make(&host.path("state/link/new")).unwrap_err();
    Directory::check_make(&host.path("shadow")).unwrap_err();
}

#[test]
fn a_file_that_would_fill_the_memory_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("process.json");
    let file = File::create(&path).unwrap();
    file.set_len(MAX_READ_BYTES + 1).unwrap();
    let place = Place::nofollow(&path).unwrap();
    for error in [place.read().unwrap_err(), place.read_own().unwrap_err()] {
        assert_eq!(error.to_string(), "it is longer than 64 MiB, the limit for such a file");
    }
    file.set_len(1).unwrap();
    assert_eq!(place.read().unwrap().unwrap().0, b"\0");
}
