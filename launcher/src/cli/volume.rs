//! `microvm volume`: backup, restore and grow the volumes of a machine that is not running.

use super::machine::{failed, launch_of, watch_signals};
use super::spec_file::{Overrides, read};
use launcher::imperative::{Layout, MachineName};
use launcher::interruption::Interruption;
use launcher::launch::{Access, Launch, VolumeNeed};
use launcher::own_files::{require_free_name, require_no_own_file};
use launcher::spec::MachineSpec;
use launcher::state::RuntimeDirectory;
use launcher::suspend::is_suspended;
use launcher::volumes::{
    Copied, CopyError, CopyOwner, GrowError, Grown, ImageLock, LockRequest, LockTime, VolumeError, VolumeLock, copy,
    grow, lock_volumes,
};
use program::failure::Failure;
use program::output::message;
use std::path::{Path, PathBuf, absolute};

/// Back up, restore or grow a volume of a machine that is not running
#[derive(clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Copy a volume to a new file
    ///
    /// Holes take no space in the copy. On btrfs, XFS and bcachefs, a copy on the same file system shares all blocks
    /// with the volume. The machine must be stopped or suspended, because a copy of a volume in use is inconsistent.
    Backup {
        #[command(flatten)]
        target: Target,
        /// The new file; it must not exist
        file: PathBuf,
    },
    /// Create a volume from a backup
    ///
    /// An existing volume is never replaced: move it away first.
    Restore {
        #[command(flatten)]
        target: Target,
        /// The backup
        file: PathBuf,
    },
    /// Grow a volume, and the ext2, ext3 or ext4 file system in it
    ///
    /// Other file systems keep their size; the command prints what to type in the guest.
    Grow {
        #[command(flatten)]
        target: Target,
        /// The new size in bytes, or with K, M, G or T for multiples of 1024
        #[arg(value_parser = size_of)]
        size: u64,
    },
}

/// A volume of a machine.
#[derive(clap::Args)]
struct Target {
    /// The machine: its name on this host, or its spec file
    machine: String,
    /// The volume: its image as written in the spec, its file name, its mount point or its label
    volume: String,
    #[command(flatten)]
    overrides: Overrides,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.action {
        Action::Backup { target, file } => {
            let (volume, interruption) = target.find()?;
            volume.require_free_name(file)?;
            let _lock = volume.lock(ImageLock::HeldUnchanged)?;
            copied(copy(volume.need.image.as_path(), file, CopyOwner::Current, &interruption))?;
            message(&format!("{}: copied to {}", volume.need.image, file.display()));
            Ok(())
        }
        Action::Restore { target, file } => {
            let (volume, interruption) = target.find()?;
            let _lock = volume.lock(ImageLock::Held)?;
            volume.require_not_suspended()?;
            copied(copy(file, volume.need.image.as_path(), CopyOwner::OwnerOfDirectory, &interruption))?;
            message(&format!("{}: restored from {}", volume.need.image, file.display()));
            Ok(())
        }
        Action::Grow { target, size } => {
            let (volume, interruption) = target.find()?;
            let locks = volume.lock(ImageLock::Held)?;
            volume.require_not_suspended()?;
            let grown = grow(volume.need.image.as_path(), *size, &locks, &interruption).map_err(grow_failure)?;
            volume.report_grown(grown);
            Ok(())
        }
    }
}

/// A volume, with its absolute path, and the launch of its machine.
struct MachineVolume {
    need: VolumeNeed,
    device: Option<String>,
    launch: Launch,
    runtime: RuntimeDirectory,
}

impl Target {
    fn find(&self) -> Result<(MachineVolume, Interruption), Failure> {
        let runtime = RuntimeDirectory::locate().map_err(failed)?;
        let (spec, overrides) = self.spec()?;
        let interruption = watch_signals()?;
        let launch = launch_of(&spec, &overrides, &runtime, &interruption)?;
        require_no_own_file(&launch, &runtime).map_err(failed)?;
        let is_meant = |need: &&VolumeNeed| {
            let file_name = need.image.as_path().file_name().and_then(|name| name.to_str());
            let names = [Some(need.image.as_str()), file_name, need.mount_point.as_deref(), need.label.as_deref()];
            names.contains(&Some(self.volume.as_str()))
        };
        let found: Vec<_> = launch.needs.volumes.iter().filter(is_meant).collect();
        let [need] = found.as_slice() else {
            let known: Vec<_> = launch.needs.volumes.iter().map(|need| need.image.as_str()).collect();
            let problem = match found.is_empty() {
                true => format!("{} has no volume `{}`", launch.name, self.volume),
                false => format!("{} has several volumes `{}`; select one by its image", launch.name, self.volume),
            };
            let hint = match known.is_empty() {
                true => "the machine has no volumes".to_owned(),
                false => format!("its volumes are {}", known.join(", ")),
            };
            return Err(Failure::usage(problem).with_hint(hint));
        };
        let device = launch.disks.iter().find(|disk| disk.image == need.image).map(|disk| disk.device.clone());
        let mut need = VolumeNeed::clone(need);
        need.image = need.image.below(&launch.working_directory);
        // A guest cannot change a volume that it only reads, but a restored or grown one is written here.
        need.access = Access::ReadWrite;
        Ok((MachineVolume { need, device, launch, runtime }, interruption))
    }

    /// Returns the spec of a machine of this host, or the given one, with what overrides it.
    fn spec(&self) -> Result<(MachineSpec, Overrides), Failure> {
        if self.machine.contains('/') || self.machine.ends_with(".json") || self.machine == "-" {
            let spec = read(Path::new(&self.machine), &self.overrides)?;
            self.overrides.require_state_directory()?;
            return Ok((spec, self.overrides.clone()));
        }
        let name = MachineName::new(&self.machine).map_err(|error| Failure::usage(error.to_string()))?;
        let machine = Layout::of_environment().existing(&name).map_err(|error| {
            Failure::usage(error.to_string()).with_hint("specify a machine of this host, or a spec file")
        })?;
        let overrides = Overrides { state_dir: Some(machine.directory.clone()), ..self.overrides.clone() };
        let spec = read(&machine.runner().map_err(failed)?.join("share/microvm/machine.json"), &overrides)?;
        Ok((spec, overrides))
    }
}

impl MachineVolume {
    /// Locks the volume, so that no machine starts to write to it.
    fn lock(&self, image_lock: ImageLock) -> Result<Vec<VolumeLock>, Failure> {
        let request = LockRequest {
            machine: &self.launch.name,
            working_directory: &self.launch.working_directory,
            runtime: &self.runtime,
            owner: None,
            image_lock,
            time: LockTime::Now,
        };
        lock_volumes(std::slice::from_ref(&self.need), request).map_err(|error| match error {
            VolumeError::InUse { path, holder } => {
                Failure::problems(vec![format!("volume {path} is in use by {holder}")])
                    .with_hint(format!("stop the machine first: microvm stop {}", self.launch.name))
            }
            error => failed(error),
        })
    }

    /// Refuses to change a volume of a suspended machine: its guest has parts of the file system in its memory.
    fn require_not_suspended(&self) -> Result<(), Failure> {
        if !is_suspended(&self.launch) {
            return Ok(());
        }
        let name = &self.launch.name;
        let problem = format!("{name} is suspended, and could not be resumed with a changed volume");
        Err(Failure::problems(vec![problem]).with_hint(format!(
            "resume it and shut it down, or delete what was saved with `microvm resume --discard {name}`"
        )))
    }

    /// Refuses a backup with the name of a file that microvm keeps for this machine or another one of this host.
    fn require_free_name(&self, backup: &Path) -> Result<(), Failure> {
        let backup = absolute(backup).map_err(failed)?;
        let layout = Layout::of_environment();
        require_free_name(&self.launch, layout.machines(), &backup).map_err(|error| Failure::usage(error.to_string()))
    }

    fn report_grown(&self, grown: Grown) {
        let image = &self.need.image;
        let place = self.need.mount_point.as_deref();
        let device = self.device.as_deref().unwrap_or("the disk");
        let in_guest = match grown {
            Grown::WithFileSystem => return message(&format!("{image}: grown, including its file system")),
            Grown::ImageOnly(Some("xfs")) => format!("xfs_growfs {}", place.unwrap_or(device)),
            Grown::ImageOnly(Some("btrfs")) => format!("btrfs filesystem resize max {}", place.unwrap_or(device)),
            Grown::ImageOnly(_) => {
                return message(&format!(
                    "{image}: grown; its content keeps its old size and must be grown in the guest ({device})"
                ));
            }
        };
        message(&format!("{image}: grown; to grow its file system, type in the guest: {in_guest}"));
    }
}

fn copied(result: Result<Copied, CopyError>) -> Result<(), Failure> {
    result.map(drop).map_err(|error| match error {
        CopyError::Exists(_) => Failure::usage(error.to_string()),
        CopyError::Interrupted(interrupted) => failed(interrupted),
        error => Failure::bad_input(&error),
    })
}

fn grow_failure(error: GrowError) -> Failure {
    match error {
        GrowError::NotLarger { .. } | GrowError::NotRaw { .. } | GrowError::TooLittle { .. } => {
            Failure::usage(error.to_string())
        }
        GrowError::Interrupted(interrupted) => failed(interrupted),
        GrowError::File { .. } => Failure::bad_input(&error),
        GrowError::Damaged { ref path, .. } => {
            let hint = format!("copy the image, then repair it as its owner: e2fsck -f {}", path.display());
            failed(error).with_hint(hint)
        }
        error => failed(error),
    }
}

/// Parses `64M`, `10G` or a number of bytes.
fn size_of(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        unit => return Err(format!("`{unit}` is not a unit: use K, M, G or T, each 1024 times the previous one")),
    };
    let number: Option<u64> = match digits.strip_prefix('+') {
        Some(_) => return Err("it is the new size of the volume, so it has no sign".to_owned()),
        None => digits.parse().ok(),
    };
    number
        .ok_or_else(|| "it must be a number with an optional unit, such as 10G".to_owned())?
        .checked_mul(1 << shift)
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| "it is too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::size_of;

    #[test]
    fn sizes_have_units_and_are_never_guessed() {
        assert_eq!(
            ["0", "512", "10K", "64MiB", "3G", "1T"].map(|text| size_of(text).unwrap()),
            [0, 512, 10 << 10, 64 << 20, 3 << 30, 1 << 40]
        );
        for text in ["", "G", "10g", "10 G", "1.5G", "-1", "+5G", "+5", "9999999999999999999T", "8388608T", "x10M"] {
            assert!(size_of(text).is_err(), "{text}");
        }
    }
}
