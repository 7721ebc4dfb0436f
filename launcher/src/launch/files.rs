//! The files of a machine: those that the spec names, and those that a start creates, replaces or removes. No file can be
//! two of them.

use super::{Access, Launch, NotificationSocket, SideProcess, SideProcessKind, VsockHostEnd, seal_of};
use crate::path::HostPath;
use crate::validate::OWN_FILES;

/// The ending of the record beside the socket of a side process.
pub const RECORD_ENDING: &str = ".command";
/// The ending of the lock file beside an image.
pub const LOCK_ENDING: &str = ".lock";

/// A file of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineFile {
    /// The option of the spec that names it, or that requires it.
    pub option: String,
    /// Its path, as the spec writes it.
    pub path: HostPath,
    /// What it is, as it follows the name of the file and a comma.
    pub role: String,
    /// How it is used.
    pub usage: FileUsage,
}

/// How a file of a machine is used. If one file has two usages, the error names the one that comes first here and
/// describes the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileUsage {
    /// The guest writes to it.
    Written,
    /// The guest only reads it.
    ReadVolume,
    /// A start reads it, or it is a directory.
    Read,
    /// A start builds it.
    Built,
    /// A start removes the socket that is there and creates another one.
    Socket,
    /// The launcher writes it.
    Kept,
}

impl FileUsage {
    /// Whether one file can have both usages. Two volumes are compared when they are locked.
    pub fn allows(self, other: Self) -> bool {
        let (first, second) = (self.min(other), self.max(other));
        match second {
            Self::Kept => first == Self::Kept,
            Self::Socket => false,
            Self::Built => first == Self::Built,
            Self::Read => first != Self::Written,
            Self::ReadVolume | Self::Written => true,
        }
    }
}

impl Launch {
    /// Returns all files of the machine except those in its runtime directory.
    pub fn machine_files(&self) -> Vec<MachineFile> {
        let file = |option: &str, path: &HostPath, role: &str, usage| MachineFile {
            option: option.to_owned(),
            path: path.clone(),
            role: role.to_owned(),
            usage,
        };
        let kept = |option: &str, path: &HostPath, role: &str| file(option, path, role, FileUsage::Kept);
        let mut files = Vec::new();
        for (index, volume) in self.needs.volumes.iter().enumerate() {
            let is_written = volume.access == Access::ReadWrite;
            let usage = if is_written { FileUsage::Written } else { FileUsage::ReadVolume };
            let option = format!("volumes[{index}].image");
            files.push(file(&option, &volume.image, "a volume of this machine", usage));
            let lock = HostPath::new(format!("{}{LOCK_ENDING}", volume.image));
            files.push(kept(&option, &lock, &format!("the lock file of {option}")));
        }
        for need in &self.needs.present {
            let role = format!("the {} of this machine, which its guest must not change", need.option);
            files.push(file(&need.option, &need.path, &role, FileUsage::Read));
        }
        if let Some(store_disk) = &self.needs.store_disk {
            let role = "the store disk, which a start builds";
            files.push(file("storeDisk.image", &store_disk.image, role, FileUsage::Built));
            let role = "the file with the root hash of the store disk";
            files.extend(self.needs.sealed_image.as_ref().map(|image| kept("storeDisk.image", &seal_of(image), role)));
        }
        files.extend(self.files.iter().map(|file| kept("name", &file.path, "which every start writes")));
        let reserved = OWN_FILES.into_iter().map(HostPath::from);
        files.extend(reserved.map(|path| kept("name", &path, "which microvm keeps in the state directory")));
        let sockets = self.machine_sockets();
        for process in &self.needs.processes {
            let record = HostPath::new(format!("{}{RECORD_ENDING}", process.socket));
            let role = format!("the record of the command that serves {}", process.socket);
            files.push(kept(option_of(process), &record, &role));
        }
        files.into_iter().chain(sockets).collect()
    }

    /// Returns the sockets of the machine.
    pub fn machine_sockets(&self) -> Vec<MachineFile> {
        let socket = |option: &str, path: &HostPath, role: String| MachineFile {
            option: option.to_owned(),
            path: path.clone(),
            role,
            usage: FileUsage::Socket,
        };
        let mut sockets = Vec::new();
        let control = self.control.iter().map(|control| &control.path);
        sockets.extend(control.map(|path| socket("socket", path, "the control socket of this machine".to_owned())));
        let console = self.console.socket.iter();
        sockets.extend(console.map(|path| socket("consoleSocket", path, "the socket of its console".to_owned())));
        if let Some(VsockHostEnd::UnixSocket(path)) = self.vsock.as_ref().map(|vsock| &vsock.host_end) {
            sockets.push(socket("vsock.socket", path, "the socket of its vsock device".to_owned()));
        }
        if let Some(NotificationSocket::Unix(path)) =
            self.notification.as_ref().map(|notification| &notification.listen)
        {
            let role = "the socket at which its guest reports that it has booted".to_owned();
            sockets.push(socket("vsock.socket", path, role));
        }
        for process in &self.needs.processes {
            sockets.push(socket(
                option_of(process),
                &process.socket,
                format!("the socket of {}", process.description()),
            ));
            // A process that only makes a view has no other socket.
            if let Some(view) = process.view.as_ref().filter(|view| view.control != process.socket) {
                let role = format!("the socket for further paths of the share `{}`", process.name);
                sockets.push(socket("shares", &view.control, role));
            }
        }
        // Those of the user's own arguments.
        for path in &self.needs.sockets_to_remove {
            if !sockets.iter().any(|socket| socket.path == *path) {
                sockets.push(socket("socket", path, "a socket of this machine".to_owned()));
            }
        }
        sockets
    }
}

/// The option of the spec that a side process belongs to.
fn option_of(process: &SideProcess) -> &'static str {
    match process.kind {
        SideProcessKind::Virtiofsd | SideProcessKind::ShareView => "shares",
        SideProcessKind::Passt => "interfaces",
        SideProcessKind::CrosvmGpu => "graphics.socket",
        SideProcessKind::StoreDisk => "storeDisk.live",
    }
}
