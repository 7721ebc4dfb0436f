use super::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

/// Repeats an attempt until it succeeds. A child that another test forks has the locks of this process until it executes
/// its program, so a lock may be held for a moment after it was released.
fn eventually<T, E: std::fmt::Display>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(error) if Instant::now() > end => panic!("{error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn need_of(image: &str, access: Access) -> VolumeNeed {
    VolumeNeed {
        image: HostPath::from(image),
        fs_type: "ext4".to_owned(),
        label: None,
        access,
        image_type: crate::spec::ImageType::Raw,
        mount_point: None,
        creation: None,
    }
}

struct Host {
    directory: tempfile::TempDir,
    home: HostPath,
    runtime: RuntimeDirectory,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let home = HostPath::new(directory.path().to_str().unwrap());
        let runtime = RuntimeDirectory::at(directory.path().join("run"));
        Self { directory, home, runtime }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn lock(&self, machine: &str, images: &[&str]) -> Result<Vec<VolumeLock>, String> {
        self.lock_for(machine, &images.iter().map(|image| (*image, Access::ReadWrite)).collect::<Vec<_>>())
    }

    fn lock_for(&self, machine: &str, images: &[(&str, Access)]) -> Result<Vec<VolumeLock>, String> {
        self.request_lock(machine, images, LockTime::Now).map_err(|error| error.to_string())
    }

    fn request_lock(
        &self,
        machine: &str,
        images: &[(&str, Access)],
        time: LockTime,
    ) -> Result<Vec<VolumeLock>, VolumeError> {
        let volumes: Vec<_> = images.iter().map(|(image, access)| need_of(image, *access)).collect();
        let (working_directory, runtime) = (&self.home, &self.runtime);
        let image_lock = ImageLock::Held;
        let request = LockRequest { machine, working_directory, runtime, owner: None, image_lock, time };
        // A check before the start reports the same, except for one volume that is listed twice.
        eventually(|| {
            let inspected = inspect_locks(&volumes, request);
            let locks = lock_volumes(&volumes, request);
            let is_checked = time == LockTime::Now && !matches!(locks, Err(VolumeError::Twice { .. }));
            if is_checked && inspected.is_empty() != locks.is_ok() {
                return Err(format!("{inspected:?} {locks:?}"));
            }
            Ok(locks)
        })
    }
}

#[test]
fn a_second_writer_is_refused_with_an_error_that_names_the_first() {
    let host = Host::new();
    fs::write(host.path("var.img"), "").unwrap();
    symlink("var.img", host.path("link.img")).unwrap();
    let first = host.lock("web", &["var.img"]).unwrap();
    for image in ["var.img", "./var.img", "link.img"] {
        let error = host.lock("db", &[image]).unwrap_err();
        let read_owner = format!("is in use by machine web, process {}", Pid::this());
        assert!(error.contains(&read_owner), "{error}");
    }
    drop(first);
    eventually(|| host.lock("db", &["link.img"]));
}

#[test]
fn a_lock_that_is_taken_later_waits_for_the_machine_that_leaves() {
    let host = Host::new();
    fs::write(host.path("var.img"), "").unwrap();
    let leaves = host.lock("web", &["var.img"]).unwrap();
    let mut arrives = host.request_lock("web", &[("var.img", Access::ReadWrite)], LockTime::Later).unwrap();
    assert_eq!(arrives.len(), 2, "the lock file and the image");
    for lock in &mut arrives {
        assert!(matches!(lock.take(), Err(VolumeError::InUse { .. })));
    }
    drop(leaves);
    arrives.iter_mut().for_each(|lock| eventually(|| lock.take()));
    let in_use = |access| match host.request_lock("db", &[("var.img", access)], LockTime::Now) {
        Err(VolumeError::InUse { holder, .. }) => holder,
        other => panic!("{other:?}"),
    };
    assert!(!in_use(Access::Read).is_on_another_host());
    fs::write(host.path("var.img.lock"), "machine web, process 7 on elsewhere.example\n").unwrap();
    assert!(in_use(Access::ReadWrite).is_on_another_host());
}

#[test]
fn a_machine_does_not_read_a_volume_that_another_one_writes_to() {
    let host = Host::new();
    fs::write(host.path("var.img"), "").unwrap();
    symlink("var.img", host.path("link.img")).unwrap();
    let (read, write) = ([("link.img", Access::Read)], [("var.img", Access::ReadWrite)]);
    let readers = [host.lock_for("web", &read).unwrap(), host.lock_for("mail", &read).unwrap()];
    let error = host.lock_for("db", &write).unwrap_err();
    assert!(error.contains("is in use by a machine that reads it"), "{error}");
    drop(readers);
    let writer = eventually(|| host.lock_for("db", &write));
    let error = host.lock_for("web", &read).unwrap_err();
    assert!(error.contains("is in use by machine db, process "), "{error}");
    drop(writer);
    eventually(|| host.lock_for("web", &[read[0], ("./var.img", Access::Read), ("missing.img", Access::Read)]));
    eventually(|| match host.lock_for("web", &[read[0], write[0]]) {
        Err(error) if error.contains("are the same file") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // A link in the place of the lock file is not followed by a reader either.
    fs::remove_file(host.path("var.img.lock")).unwrap();
    symlink("var.img", host.path("var.img.lock")).unwrap();
    host.lock_for("web", &read).unwrap_err();
}

#[test]
fn a_volume_is_locked_before_it_is_created() {
    let host = Host::new();
    let _first = host.lock("web", &["images/var.img"]).unwrap();
    host.lock("db", &["images/var.img"]).unwrap_err();
}

#[test]
fn two_volumes_of_a_machine_that_are_the_same_file_are_refused() {
    for second in ["./var.img", "link.img", "hard.img"] {
        // Not one for all: a child that another test forks has the lock until it executes its program.
        let host = Host::new();
        fs::write(host.path("var.img"), "").unwrap();
        symlink("var.img", host.path("link.img")).unwrap();
        fs::hard_link(host.path("var.img"), host.path("hard.img")).unwrap();
        let error = host.lock("web", &["var.img", second]).unwrap_err();
        assert!(error.contains("are the same file"), "{error}");
    }
}

#[test]
fn an_image_is_locked_under_all_its_hard_links() {
    let host = Host::new();
    fs::write(host.path("var.img"), "").unwrap();
    fs::hard_link(host.path("var.img"), host.path("hard.img")).unwrap();
    let _first = host.lock("web", &["var.img"]).unwrap();
    host.lock("db", &["hard.img"]).unwrap_err();
}

#[test]
fn a_hard_link_that_is_made_while_a_machine_runs_is_refused() {
    for access in [Access::ReadWrite, Access::Read] {
        let host = Host::new();
        fs::write(host.path("var.img"), "").unwrap();
        let first = host.lock("web", &["var.img"]).unwrap();
        fs::hard_link(host.path("var.img"), host.path("hard.img")).unwrap();
        let error = host.lock_for("db", &[("hard.img", access)]).unwrap_err();
        assert!(error.contains("hard.img is in use by another process, which may use another name"), "{error}");
        drop(first);
        eventually(|| host.lock("db", &["hard.img"]));
    }
}

#[test]
fn a_lock_survives_exec_and_is_released_after_sigkill() {
    let host = Host::new();
    fs::write(host.path("var.img"), "").unwrap();
    let locks = host.lock("web", &["var.img"]).unwrap();
    let mut command = std::process::Command::new("sleep");
    command.arg("600");
    program::child::pass_descriptors(&mut command, locks.iter().map(VolumeLock::descriptor).collect());
    let mut hypervisor = command.spawn().unwrap();
    drop(locks);
    host.lock("db", &["var.img"]).unwrap_err();
    hypervisor.kill().unwrap();
    hypervisor.wait().unwrap();
    eventually(|| host.lock("db", &["var.img"]));
}

#[test]
fn a_lock_file_has_the_mode_of_its_image_and_a_symbolic_link_is_refused() {
    let host = Host::new();
    fs::write(host.path("var.img"), "").unwrap();
    fs::set_permissions(host.path("var.img"), fs::Permissions::from_mode(0o660)).unwrap();
    host.lock("web", &["var.img"]).unwrap();
    assert_eq!(fs::metadata(host.path("var.img.lock")).unwrap().mode() & 0o777, 0o660);
    fs::remove_file(host.path("var.img.lock")).unwrap();
    fs::write(host.path("victim"), "untouched").unwrap();
    symlink("victim", host.path("var.img.lock")).unwrap();
    let error = host.lock("web", &["var.img"]).unwrap_err();
    assert!(error.contains("cannot be locked"), "{error}");
    assert_eq!(fs::read_to_string(host.path("victim")).unwrap(), "untouched");
}

#[test]
fn an_image_whose_directory_is_not_writable_is_locked_by_its_number() {
    let host = Host::new();
    fs::create_dir(host.path("images")).unwrap();
    fs::write(host.path("images/var.img"), "").unwrap();
    let place = Place::of(&host.path("images/var.img")).unwrap();
    let stat = place.stat().unwrap().unwrap();
    let locks = host.path("run/.volume-locks");
    let by_number = |number: ImageNumber| Ok(Some(Directory::make(&locks, 0o755, None)?.place(number.lock_name())));
    let found = |place: &Place| -> Vec<PathBuf> {
        places(place, Some(&stat), &by_number).unwrap().iter().map(Place::path).collect()
    };
    assert_eq!(found(&place), [host.path("images/var.img.lock")]);
    // Root can write to every directory except an immutable one, and not every file system supports that flag.
    let images = fs::File::open(host.path("images")).unwrap();
    if !geteuid().is_root() {
        fs::set_permissions(host.path("images"), fs::Permissions::from_mode(0o555)).unwrap();
    } else if rustix::fs::ioctl_setflags(&images, rustix::fs::IFlags::IMMUTABLE).is_err() {
        testing::skipped("directories cannot be made immutable on this file system");
        return;
    }
    let found = found(&place);
    if geteuid().is_root() {
        rustix::fs::ioctl_setflags(&images, rustix::fs::IFlags::empty()).unwrap();
    }
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with(host.path("run/.volume-locks")), "{found:?}");
}

#[test]
fn a_volume_on_a_full_disk_is_locked() {
    if !geteuid().is_root() {
        return testing::skipped("only root can mount a file system");
    }
    let host = Host::new();
    let (full, image) = (host.path("full"), "full/var.img");
    fs::create_dir(&full).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        std::process::Command::new(program).args(arguments).arg(&full).status().is_ok_and(|status| status.success())
    };
    if !run("mount", &["-t", "tmpfs", "-o", "size=8k", "none"]) {
        return testing::missing("a tmpfs cannot be mounted here");
    }
    fs::write(host.path(image), "volume").unwrap();
    fs::write(full.join("fills"), [0; 4096]).unwrap();
    let first = host.lock("web", &[image]);
    let second = host.lock("db", &[image]);
    let locked = first.is_ok();
    drop(first);
    assert!(run("umount", &["-l"]));
    assert!(locked && second.unwrap_err().contains("is in use by another process"));
}

#[test]
fn a_block_device_that_the_host_uses_is_not_a_volume_that_a_machine_writes_to() {
    let host = Host::new();
    let image = host.path("image");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let Some(attached) = Loop::attach(&image, &[]) else { return };
    let device = attached.0.as_str();
    let claimed = eventually(|| claim(device));
    assert!(host.lock("web", &[device]).unwrap_err().contains("this host uses the block device"));
    host.lock_for("web", &[(device, Access::Read)]).unwrap();
    drop(claimed);
    drop(eventually(|| host.lock("web", &[device])));
    File::options().write(true).open(device).unwrap();
    // A machine that migrates to this host, and the device of a volume with a size, which is locked again once it is created.
    let lock_twice = |creation: bool| {
        let need = VolumeNeed {
            creation: creation.then(|| crate::launch::VolumeCreation { size_mib: 1, mkfs_extra_args: Vec::new() }),
            ..need_of(device, Access::ReadWrite)
        };
        let request = |image_lock, time| LockRequest {
            machine: "web",
            working_directory: &host.home,
            runtime: &host.runtime,
            owner: None,
            image_lock,
            time,
        };
        let lock = |image_lock, time| {
            eventually(|| {
                let mut locks = lock_volumes(std::slice::from_ref(&need), request(image_lock, time))?;
                lock_created(std::slice::from_ref(&need), request(image_lock, time), &mut locks)?;
                Ok::<_, VolumeError>(locks)
            })
        };
        for (image_lock, time) in
            [(ImageLock::Held, LockTime::Now), (ImageLock::Tried, LockTime::Now), (ImageLock::Held, LockTime::Later)]
        {
            let locks = lock(image_lock, time);
            assert_eq!(claim(device).err(), Some(nix::errno::Errno::EBUSY), "{image_lock:?} {time:?}");
            drop(locks);
        }
    };
    [false, true].into_iter().for_each(lock_twice);
}

#[test]
fn a_volume_that_has_the_name_of_another_volumes_lock_file_keeps_its_content() {
    let host = Host::new();
    fs::write(host.path("a"), "").unwrap();
    let content = [7; 4096];
    fs::write(host.path("a.lock"), content).unwrap();
    let error = host.lock("web", &["a"]).unwrap_err();
    assert!(error.contains("a.lock: this is not a lock file"), "{error}");
    assert_eq!(fs::read(host.path("a.lock")).unwrap(), content);
}

/// A loop device that shows a file until it is dropped.
struct Loop(String);

impl Loop {
    fn attach(file: &Path, options: &[&str]) -> Option<Self> {
        let mut command = std::process::Command::new("losetup");
        let attached = command.args(["--find", "--show"]).args(options).arg(file).output().unwrap();
        if attached.status.success() {
            return Some(Self(String::from_utf8(attached.stdout).unwrap().trim().to_owned()));
        }
        testing::missing("a loop device is needed");
        None
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// Claims a block device as mount(8) does.
fn claim(device: &str) -> nix::Result<std::os::fd::OwnedFd> {
    nix::fcntl::open(device, OFlag::O_RDONLY | OFlag::O_EXCL | OFlag::O_CLOEXEC, Mode::empty())
}

impl Host {
    /// Waits until locking these images is refused for this reason.
    fn refuses(&self, machine: &str, images: &[(&str, Access)], reason: &str) {
        eventually(|| match self.lock_for(machine, images) {
            Err(error) if error.contains(reason) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

#[test]
fn a_loop_device_and_its_file_are_one_volume() {
    let host = Host::new();
    File::create(host.path("image")).unwrap().set_len(1 << 20).unwrap();
    let Some(device) = Loop::attach(&host.path("image"), &[]) else { return };
    let (device, image) = ((device.0.as_str(), Access::ReadWrite), ("image", Access::ReadWrite));
    // In one machine.
    let reads = |image: (&'static str, Access)| (image.0, Access::Read);
    let read_device = (device.0, Access::Read);
    for images in [[device, image], [image, device], [read_device, image], [device, reads(image)]] {
        host.refuses("web", &images, "are the same file");
    }
    // In two machines.
    let first = eventually(|| host.lock_for("web", &[image]));
    host.refuses("db", &[device], "is in use by another process, which may use another name of this file, or a loop");
    drop(first);
    let first = eventually(|| host.lock_for("web", &[device]));
    let expected = format!("the loop device {} shows this file and is in use", device.0);
    host.refuses("db", &[image], &expected);
    drop(first);
    eventually(|| host.lock_for("db", &[image]));
    // The host mounts the device while it shows the volume of a machine that is stopped.
    let claimed = eventually(|| claim(device.0));
    host.refuses("db", &[image], &expected);
    drop(claimed);
}

#[test]
fn a_volume_that_the_host_has_mounted_read_only_can_be_copied_but_not_written_to() {
    let host = Host::new();
    File::create(host.path("image")).unwrap().set_len(1 << 20).unwrap();
    let Some(device) = Loop::attach(&host.path("image"), &["--read-only"]) else { return };
    let claimed = eventually(|| claim(&device.0));
    host.refuses("web", &[("image", Access::ReadWrite)], "shows this file and is in use");
    let need = need_of("image", Access::ReadWrite);
    let request = LockRequest {
        machine: "web",
        working_directory: &host.home,
        runtime: &host.runtime,
        owner: None,
        image_lock: ImageLock::HeldUnchanged,
        time: LockTime::Now,
    };
    eventually(|| lock_volumes(std::slice::from_ref(&need), request));
    drop(claimed);
}

#[test]
fn a_file_at_the_path_of_the_file_of_a_loop_device_is_another_file() {
    let host = Host::new();
    File::create(host.path("image")).unwrap().set_len(1 << 20).unwrap();
    let Some(device) = Loop::attach(&host.path("image"), &[]) else { return };
    // The kernel follows the renamed file, and adds " (deleted)" to the path of a removed one.
    fs::hard_link(host.path("image"), host.path("kept")).unwrap();
    fs::remove_file(host.path("image")).unwrap();
    let deleted = host.path("image (deleted)");
    File::create(&deleted).unwrap().set_len(1 << 20).unwrap();
    let shown = fs::read_to_string(Path::new("/sys/block").join(&device.0["/dev/".len()..]).join("loop/backing_file"));
    assert_eq!(shown.unwrap().trim(), deleted.to_str().unwrap());
    let written = |image| (image, Access::ReadWrite);
    let first = eventually(|| host.lock_for("web", &[written("image (deleted)")]));
    eventually(|| host.lock_for("db", &[written(device.0.as_str())]));
    drop(first);
    host.refuses("web", &[written(device.0.as_str()), written("kept")], "are the same file");
    eventually(|| host.lock_for("web", &[written(device.0.as_str()), written("image (deleted)")]));
}

#[test]
fn a_loop_device_of_a_loop_device_and_the_file_are_one_volume() {
    let host = Host::new();
    File::create(host.path("image")).unwrap().set_len(1 << 20).unwrap();
    let Some(below) = Loop::attach(&host.path("image"), &[]) else { return };
    let Some(above) = Loop::attach(Path::new(&below.0), &[]) else { return };
    let written = |image| (image, Access::ReadWrite);
    host.refuses("web", &[written(above.0.as_str()), written("image")], "are the same file");
    host.refuses("web", &[written(above.0.as_str()), written(below.0.as_str())], "are the same file");
}

#[test]
fn two_loop_devices_that_show_different_parts_of_a_file_are_two_volumes() {
    let host = Host::new();
    File::create(host.path("image")).unwrap().set_len(2 << 20).unwrap();
    let image = host.path("image");
    let Some(first) = Loop::attach(&image, &["--sizelimit", "1048576"]) else { return };
    let Some(second) = Loop::attach(&image, &["--offset", "1048576"]) else { return };
    let locks = eventually(|| host.lock("web", &[&first.0, &second.0]));
    host.refuses("db", &[("image", Access::ReadWrite)], "shows this file and is in use");
    drop(locks);
}

#[test]
fn two_spellings_of_a_volume_that_does_not_exist_yet_are_one_volume() {
    let host = Host::new();
    let written = |image| (image, Access::ReadWrite);
    host.refuses("web", &[written("x/../a"), written("a")], "are the same file");
    let first = eventually(|| host.lock("web", &["y/../b"]));
    host.refuses("db", &[written("b")], "is in use by machine web");
    drop(first);
}
