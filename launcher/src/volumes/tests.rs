use super::*;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

fn need(directory: &Path, fs_type: &str) -> VolumeNeed {
    VolumeNeed {
        image: HostPath::new(directory.join("var.img").to_str().unwrap()),
        fs_type: fs_type.to_owned(),
        label: Some("state".to_owned()),
        access: Access::ReadWrite,
        image_type: crate::spec::ImageType::Raw,
        mount_point: None,
        creation: Some(VolumeCreation { size_mib: 16, mkfs_extra_args: Vec::new() }),
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_volume_is_created_once() {
    let directory = tempfile::tempdir().unwrap();
    let interruption = Interruption::watch().unwrap();
    for (fs_type, size_mib) in [("ext4", 16), ("ext2", 16), ("vfat", 16), ("xfs", 320), ("btrfs", 128)] {
        if crate::programs::find_program(&HostPath::new(format!("mkfs.{fs_type}"))).is_err() {
            testing::missing(&format!("mkfs.{fs_type} is not installed"));
            continue;
        }
        let mut volume = need(&directory.path().join(fs_type), fs_type);
        volume.creation = Some(VolumeCreation { size_mib, mkfs_extra_args: Vec::new() });
        volume.label = Some(if fs_type == "vfat" { "STATE" } else { "state" }.to_owned());
        assert_eq!(make_ready(&volume, None, &interruption).unwrap(), VolumeState::Created, "{fs_type}");
        let image = File::open(volume.image.as_path()).unwrap();
        assert_eq!(image.metadata().unwrap().len(), size_mib << 20);
        let found = file_system(&image).unwrap().unwrap();
        assert_eq!((found.fs_type, found.label), (fs_type, volume.label.clone()));
        assert_eq!(make_ready(&volume, None, &interruption).unwrap(), VolumeState::Present, "{fs_type}");
        assert_eq!(names(&directory.path().join(fs_type)), ["var.img"]);
    }
}

#[test]
fn a_failed_mkfs_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut volume = need(directory.path(), "ext4");
    volume.creation = Some(VolumeCreation { size_mib: 16, mkfs_extra_args: vec!["-Z".to_owned()] });
    let error = make_ready(&volume, None, &Interruption::watch().unwrap()).unwrap_err();
    assert!(matches!(error, VolumeError::Create { source: CreateError::Failed { .. }, .. }), "{error}");
    assert!(error.to_string().contains("mkfs.ext4"), "{error}");
    assert_eq!(names(directory.path()), [""; 0]);
}

#[test]
fn a_volume_that_is_too_small_for_its_file_system_is_refused_before_mkfs_runs() {
    let directory = tempfile::tempdir().unwrap();
    let mut volume = need(directory.path(), "xfs");
    volume.creation = Some(VolumeCreation { size_mib: 64, mkfs_extra_args: Vec::new() });
    let error = make_ready(&volume, None, &Interruption::watch().unwrap()).unwrap_err().to_string();
    let expected = format!(
        "volume {}: xfs needs at least 300 MiB, but the size is 64 MiB; set `size`, whose unit is MiB, or create the volume \
         yourself",
        volume.image
    );
    assert_eq!(error, expected);
    assert_eq!(names(directory.path()), [""; 0]);
}

#[test]
fn a_link_at_the_temporary_name_of_older_releases_is_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let volume = need(directory.path(), "ext4");
    let victim = directory.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    symlink("victim", directory.path().join("var.img.creating")).unwrap();
    let state = make_ready(&volume, None, &Interruption::watch().unwrap()).unwrap();
    assert_eq!(state, VolumeState::Created);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    assert_eq!(fs::metadata(volume.image.as_path()).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_volume_gets_its_owner_and_is_not_created_through_another_users_link() {
    if !nix::unistd::geteuid().is_root() {
        testing::skipped("only root can give files away");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (state, secret) = (directory.path().join("state"), directory.path().join("secret"));
    fs::create_dir(&state).unwrap();
    fs::create_dir(&secret).unwrap();
    let nobody = Identity::of("nobody").unwrap();
    let give_away = |path: &Path| {
        let (user, group) = (Some(nobody.user().as_raw()), Some(nobody.group().as_raw()));
        std::os::unix::fs::lchown(path, user, group).unwrap();
    };
    give_away(&state);
    let interruption = Interruption::watch().unwrap();
    make_ready(&need(&state, "ext4"), Some(&nobody), &interruption).unwrap();
    assert_eq!(fs::metadata(state.join("var.img")).unwrap().uid(), nobody.user().as_raw());
    symlink(&secret, state.join("sub")).unwrap();
    give_away(&state.join("sub"));
    let error = make_ready(&need(&state.join("sub"), "ext4"), Some(&nobody), &interruption).unwrap_err().to_string();
    assert!(error.contains("root does not follow a symbolic link of nobody"), "{error}");
    assert_eq!(names(&secret), [""; 0]);
}

#[test]
fn a_volume_with_other_content_is_refused_and_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let interruption = Interruption::watch().unwrap();
    let mut volume = need(directory.path(), "ext4");
    fs::write(volume.image.as_path(), "the user's thesis").unwrap();
    let error = make_ready(&volume, None, &interruption).unwrap_err();
    assert!(error.to_string().contains("contains no known file system, but the machine spec says ext4"), "{error}");
    assert_eq!(fs::read_to_string(volume.image.as_path()).unwrap(), "the user's thesis");
    // With autoCreate off, the content is not checked.
    volume.creation = None;
    assert_eq!(make_ready(&volume, None, &interruption).unwrap(), VolumeState::Present);
}

#[test]
fn a_volume_with_another_label_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let interruption = Interruption::watch().unwrap();
    let mut volume = need(directory.path(), "ext4");
    make_ready(&volume, None, &interruption).unwrap();
    volume.label = Some("other".to_owned());
    let error = make_ready(&volume, None, &interruption).unwrap_err().to_string();
    assert!(error.contains("contains ext4 with label `state`") && error.contains("ext4 with label `other`"), "{error}");
}

#[test]
fn the_error_for_a_missing_volume_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut volume = need(directory.path(), "ext4");
    volume.creation = None;
    let error = make_ready(&volume, None, &Interruption::watch().unwrap()).unwrap_err();
    assert!(error.to_string().contains("var.img does not exist"), "{error}");
}

#[test]
fn a_missing_mkfs_is_reported_before_anything_is_created() {
    let directory = tempfile::tempdir().unwrap();
    let volume = need(directory.path(), "nofs");
    let error = make_ready(&volume, None, &Interruption::watch().unwrap()).unwrap_err();
    assert!(matches!(error, VolumeError::NoMkfs { .. }), "{error}");
    assert_eq!(names(directory.path()), [""; 0]);
}

#[test]
fn creation_fails_if_a_parent_is_not_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let volume = need(&directory.path().join("file/below"), "ext4");
    fs::write(directory.path().join("file"), "").unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(matches!(make_ready(&volume, None, &Interruption::watch().unwrap()), Err(VolumeError::File { .. })));
}
