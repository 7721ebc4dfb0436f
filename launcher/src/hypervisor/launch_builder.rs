//! The builder of a launch: everything that is the same for all hypervisors, and the collected refusals and warnings.

use super::{CredentialTransport, VsockTransport, description};
use crate::cmdline::KernelCommandLine;
use crate::facts::{Architecture, HostFacts, KernelForm, Kvm};
use crate::keyval::UnescapableValue;
use crate::launch::{
    Access, BalloonDevice, ComposedInitrd, Console, ControlSocket, DeviceNode, FIRST_PASSED_DESCRIPTOR, FileNeed,
    FileToWrite, ForcedStop, GracefulStep, GuestDisk, GuestNotification, KvmUse, LAUNCH_VERSION, Launch, MacvtapNeed,
    Needs, NotificationSocket, PassedDevice, ProbedFormat, Reader, Shutdown, TapNeed, VolumeCreation, VolumeNeed,
    VsockEnd, VsockHostEnd, seal_of,
};
use crate::path::HostPath;
use crate::refusal::Refusal;
use crate::spec::{Hypervisor, MacvtapMode, ShareProtocol};
use crate::validate::{CheckedInterface, CheckedSpec, Disk, DiskBackend, DiskRole, device_name};
use program::escape::one_line;
use std::collections::BTreeMap;

/// The directory of the credentials in the initrd. The guest's stage 1 copies its content to where systemd expects it.
/// An archive cannot place files below /run directly, because systemd mounts a tmpfs over it.
const CREDENTIALS_DIRECTORY: &str = "microvm-credentials";

/// The kernel parameter that nixos-modules/microvm/open-sealed-store.sh reads.
const SEAL_PARAMETER: &str = "microvm.store_verity";
/// Its value before the image has been inspected.
const UNKNOWN_SEAL: &str = "ROOT_HASH:HASH_OFFSET_BYTES";
/// The length of its longest value: 64 digits, a colon and 20 digits.
const MAX_SEAL_BYTES: usize = 85;

/// The path of a Unix socket, with its final NUL, has at most 108 bytes: `sun_path` in unix(7).
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Options with which a hypervisor does not start a machine.
const PRINTS_AND_ENDS: [&str; 7] = ["-h", "-help", "--help", "-V", "-version", "--version", "--snapshot-version"];

/// The most queue pairs of a network interface. More do not make it faster, and each needs file descriptors.
const MAX_QUEUE_PAIRS: u32 = 16;
/// Linux maps persistent memory in huge pages.
const PMEM_ALIGNMENT_BYTES: u64 = 2 << 20;

/// A launch that is being built.
pub(super) struct LaunchBuilder<'spec> {
    pub(super) spec: &'spec CheckedSpec,
    pub(super) facts: &'spec HostFacts,
    pub(super) hypervisor: Hypervisor,
    pub(super) needs: Needs,
    refusals: Vec<Refusal>,
    warnings: Vec<String>,
    next_descriptor: i32,
}

/// The parts of a launch that only the hypervisor's own module can provide.
pub(super) struct Command {
    /// The configured program; none for the default one.
    pub(super) program: Option<HostPath>,
    pub(super) arguments: Vec<String>,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) files: Vec<FileToWrite>,
    /// The path of the control socket.
    pub(super) control: HostPath,
    pub(super) graceful: Vec<GracefulStep>,
    pub(super) forced: ForcedStop,
    pub(super) console_device: Option<&'static str>,
    pub(super) expected_configuration: Option<serde_json::Value>,
}

/// An option of a hypervisor that may be given only once.
pub(super) struct UniqueOption {
    pub(super) names: &'static [&'static str],
    /// The hint to the user: what to use instead of the option.
    pub(super) instead: &'static str,
}

impl UniqueOption {
    /// Whether the argument is this option, with or without a value. The value of an option of one letter may follow it
    /// directly.
    fn is(&self, argument: &str) -> bool {
        let with_value = |name: &&str| {
            let is_short = name.len() == 2 && !argument.starts_with("--");
            argument.strip_prefix(*name).is_some_and(|rest| is_short || rest.is_empty() || rest.starts_with('='))
        };
        self.names.iter().any(with_value)
    }
}

impl<'spec> LaunchBuilder<'spec> {
    pub(super) fn new(spec: &'spec CheckedSpec, facts: &'spec HostFacts, hypervisor: Hypervisor) -> Self {
        let mut builder = Self {
            spec,
            facts,
            hypervisor,
            needs: Needs::default(),
            refusals: Vec::new(),
            warnings: spec.warnings.clone(),
            next_descriptor: FIRST_PASSED_DESCRIPTOR,
        };
        builder.needs.pre_start = spec.pre_start.clone();
        builder.needs.store_disk = spec.store_disk.clone();
        builder.needs.sealed_image = spec.sealed_image.clone();
        builder.needs.extra_args_script = spec.extra_args_script.clone();
        builder.add_disk_needs();
        builder.add_share_needs();
        for (name, path) in &spec.credential_files {
            let option = format!("credentialFiles.{name}");
            match description(hypervisor).credentials {
                CredentialTransport::Hypervisor => builder.need_file(&option, path, Access::Read),
                CredentialTransport::Initrd => builder.need_file_for_launcher(&option, path, Access::Read),
            }
        }
        let devices = spec.devices.iter();
        builder.needs.devices =
            devices.map(|device| PassedDevice { bus: device.bus, path: device.path.clone() }).collect();
        if let Some(script) = &spec.extra_args_script {
            builder.need_file_for_launcher("extraArgsScript", script, Access::Execute);
        }
        if let Some(console) = &spec.console_socket {
            builder.needs.sockets_to_remove.push(console.clone());
        }
        if spec.memory.huge_pages {
            builder.needs.huge_pages_mib = spec.memory.mem_mib;
        }
        builder.check_extra_arguments();
        builder
    }

    /// Refuses extra arguments with which no hypervisor starts a machine.
    fn check_extra_arguments(&mut self) {
        let (option, extra) = self.spec.sections.extra_args(self.hypervisor);
        // For qemu it is a disk. The others accept at most one such argument, the kernel that the launcher passes.
        if let Some(word) = extra.first().filter(|word| self.hypervisor != Hypervisor::Qemu && !word.starts_with('-'))
            && !word.is_empty()
        {
            self.refuse(option, format!("cannot be given `{}` first, because it is not an option", one_line(word)));
        }
        for argument in extra {
            if argument.is_empty() {
                self.refuse(option, "cannot be given an empty argument");
            } else if argument == "--" {
                self.refuse(option, "cannot be given `--`, because the launcher adds options after it");
            } else if PRINTS_AND_ENDS.contains(&argument.as_str()) {
                self.refuse(
                    option,
                    format!("would print text and exit with {argument}, instead of starting the machine"),
                );
            }
        }
    }

    fn add_disk_needs(&mut self) {
        let spec = self.spec;
        if let Some(need) = &spec.store_disk {
            self.need_file("storeDisk.plan", &need.plan, Access::Read);
        }
        let mut volumes = spec.volumes.iter();
        for disk in &spec.disks {
            if disk.role == DiskRole::Store {
                self.needs.mapped_image = (disk.backend == DiskBackend::Pmem).then(|| disk.image.clone());
                if let DiskBackend::Live(live) = &disk.backend {
                    self.needs.sockets_to_remove.push(live.socket.clone());
                    self.need_file_for_launcher("storeDisk.plan", &disk.image, Access::Read);
                } else if spec.store_disk.is_none() {
                    self.need_file("storeDisk.image", &disk.image, Access::Read);
                    if spec.sealed_image.is_some() {
                        self.need_file_for_launcher("storeDisk.verity", &seal_of(&disk.image), Access::Read);
                    }
                }
                continue;
            }
            let Some(volume) = volumes.next() else { continue };
            let creation = volume
                .creation_size_mib
                .map(|size_mib| VolumeCreation { size_mib, mkfs_extra_args: volume.mkfs_extra_args.clone() });
            self.needs.volumes.push(VolumeNeed {
                image: disk.image.clone(),
                fs_type: volume.fs_type.clone(),
                label: volume.label.clone(),
                image_type: disk.image_type,
                mount_point: disk.mount_point.clone(),
                access: if disk.read_only { Access::Read } else { Access::ReadWrite },
                creation,
            });
        }
    }

    /// Records that this hypervisor detects the format of a disk from its content.
    pub(super) fn probes_formats(&mut self) {
        let disks = self.spec.disks.iter();
        self.needs.probed_formats = disks
            .filter(|disk| disk.backend == DiskBackend::Image)
            .map(|disk| ProbedFormat {
                option: disk.option.clone(),
                image: disk.image.clone(),
                image_type: disk.image_type,
            })
            .collect();
    }

    fn add_share_needs(&mut self) {
        for (index, checked) in self.spec.shares.iter().enumerate() {
            let access = if checked.share.read_only { Access::ReadDirectory } else { Access::WriteDirectory };
            if let Some(closure) = &checked.share.closure {
                self.need_file_for_launcher(&format!("shares[{index}].closure"), closure, Access::Read);
            }
            let option = format!("shares[{index}].source");
            match checked.share.proto {
                ShareProtocol::Virtiofs => self.need_file_for_launcher(&option, &checked.share.source, access),
                ShareProtocol::NineP => self.need_file(&option, &checked.share.source, access),
            }
            if checked.share.proto == ShareProtocol::Virtiofs {
                self.needs.sockets_to_remove.push(checked.socket.clone());
            }
        }
    }

    /// Returns the length of the image that is mapped as persistent memory, 0 without one, and refuses one that does not end
    /// at a huge page.
    pub(super) fn aligned_pmem_bytes(&mut self) -> u64 {
        let spec = self.spec;
        let Some(disk) = spec.disks.iter().find(|disk| disk.backend == DiskBackend::Pmem) else { return 0 };
        match self.facts.file_bytes.get(&disk.image).copied() {
            Some(bytes) if bytes.is_multiple_of(PMEM_ALIGNMENT_BYTES) && bytes > 0 => bytes,
            Some(bytes) => {
                let reason = format!(
                    "maps images whose length is a multiple of 2 MiB, and {} has {bytes} bytes; build it with \
                     `microvm-image build --format erofs --dax`",
                    disk.image
                );
                self.refuse("storeDisk.image", reason);
                0
            }
            // `explain` works without the image, with a warning; a start without it is refused before this matters.
            None => PMEM_ALIGNMENT_BYTES,
        }
    }

    /// Refuses the machine. `reason` continues a sentence that starts with the hypervisor's name.
    pub(super) fn refuse(&mut self, option: impl Into<String>, reason: impl Into<String>) {
        let refusal = Refusal {
            machine: self.spec.name.clone(),
            option: option.into(),
            hypervisor: self.hypervisor,
            reason: reason.into(),
            supported_by: Vec::new(),
        };
        // Two equal arguments of the user have one problem.
        if !self.refusals.contains(&refusal) {
            self.refusals.push(refusal);
        }
    }

    pub(super) fn warn(&mut self, option: &str, text: &str) {
        self.warnings.push(format!("{}: {option}: {text}", self.spec.name));
    }

    /// Returns the option string. If a value cannot be written in it, refuses the machine and returns an empty string.
    pub(super) fn written(&mut self, option: &str, options: Result<String, UnescapableValue>) -> String {
        options.unwrap_or_else(|unescapable| {
            self.refuse(option, unescapable.to_string());
            String::new()
        })
    }

    /// Returns the number of the next file descriptor that the hypervisor inherits.
    pub(super) fn descriptor(&mut self) -> i32 {
        let descriptor = self.next_descriptor;
        self.next_descriptor += 1;
        descriptor
    }

    pub(super) fn need_file(&mut self, option: &str, path: &HostPath, access: Access) {
        self.needs.present.push(FileNeed {
            path: path.clone(),
            option: option.to_owned(),
            access,
            reader: Reader::Hypervisor,
        });
    }

    /// Records a file that the launcher itself reads, or a process beside the hypervisor.
    pub(super) fn need_file_for_launcher(&mut self, option: &str, path: &HostPath, access: Access) {
        let (path, option) = (path.clone(), option.to_owned());
        self.needs.present.push(FileNeed { path, option, access, reader: Reader::Launcher });
    }

    pub(super) fn need_device(&mut self, option: &str, path: &str, remedy: &str) {
        let node = DeviceNode { path: HostPath::from(path), option: option.to_owned(), remedy: remedy.to_owned() };
        if self.needs.device_nodes.iter().all(|known| known.path != node.path) {
            self.needs.device_nodes.push(node);
        }
    }

    /// Returns the guest's architecture.
    pub(super) fn architecture(&self) -> Architecture {
        self.spec.architecture.unwrap_or(self.facts.architecture)
    }

    /// Refuses the machine if KVM is unavailable, for hypervisors that require it.
    pub(super) fn require_kvm(&mut self) {
        if self.architecture() != self.facts.architecture {
            let (guest, host) = (self.architecture().as_str(), self.facts.architecture.as_str());
            self.refuse("architecture", format!("cannot run a guest for {guest} on a host with {host}"));
        }
        self.use_kvm();
        if let Kvm::Unusable(why) = &self.facts.kvm {
            self.refuse("hypervisor", format!("needs KVM, but {why}"));
        }
    }

    /// Refuses more CPUs than the hypervisor or the host's KVM supports.
    pub(super) fn check_cpus(&mut self, most: u32) {
        let wanted = self.spec.vcpu;
        match self.facts.kvm_max_vcpus {
            _ if wanted > most => self.refuse("vcpu", format!("supports at most {most} CPUs")),
            Some(most) if wanted > most => {
                self.refuse("vcpu", format!("uses this host's KVM, which supports at most {most} CPUs"));
            }
            _ => {}
        }
    }

    /// Records that the machine uses KVM.
    pub(super) fn use_kvm(&mut self) {
        self.needs.kvm = KvmUse::Required;
        self.need_device("hypervisor", "/dev/kvm", "modprobe -a kvm_intel kvm_amd");
        if self.facts.kvm == Kvm::UsableSoftware {
            // Warned about in advance, because such a guest can hang before its first output, when nothing can report
            // the cause.
            let emulation = "qemu can emulate it: --hypervisor qemu --accel tcg";
            let warning = format!("this host's KVM is emulated (kvm_pvm): if the guest prints nothing, {emulation}");
            self.warn("hypervisor", &warning);
        }
    }

    /// Returns the kernel, for a hypervisor that boots a bzImage.
    pub(super) fn boot_image(&mut self) -> HostPath {
        let image = self.spec.kernel.image.clone();
        self.need_file("kernel", &image, Access::Read);
        image
    }

    /// Returns the uncompressed kernel if there is one, for a hypervisor that prefers it.
    pub(super) fn uncompressed_image(&mut self) -> HostPath {
        let Some(vmlinux) = self.spec.kernel.vmlinux.clone() else { return self.boot_image() };
        self.need_file("vmlinux", &vmlinux, Access::Read);
        vmlinux
    }

    /// Returns the name of the option that sets the kernel image.
    pub(super) fn kernel_option(&self, image: &HostPath) -> &'static str {
        if self.spec.kernel.vmlinux.as_ref() == Some(image) { "vmlinux" } else { "kernel" }
    }

    /// Returns the form of the kernel image, if the host's facts contain it. Refuses a file that is not a kernel.
    pub(super) fn kernel_form(&mut self, image: &HostPath) -> Option<KernelForm> {
        let form = self.facts.kernel_forms.get(image).copied();
        // On ARM, a kernel is an `Image`, which is in neither form.
        if form == Some(KernelForm::Unknown) && self.architecture() == Architecture::X86_64 {
            let reason = format!("cannot boot {image}: it is neither a bzImage nor an ELF");
            self.refuse(self.kernel_option(image), reason);
        }
        form
    }

    /// Returns the initrd's path for the hypervisor. With credentials, the initrd is composed in memory at the start.
    pub(super) fn initrd_with_credentials(&mut self) -> Option<HostPath> {
        let base = self.plain_initrd();
        if self.spec.credential_files.is_empty() {
            return base;
        }
        let Some(base) = base else {
            self.refuse("credentialFiles", "passes credentials to the guest in the initrd, but there is no initrd");
            return None;
        };
        let descriptor = self.descriptor();
        let credentials = self.spec.credential_files.clone();
        let directory = CREDENTIALS_DIRECTORY.to_owned();
        self.needs.initrd = Some(ComposedInitrd { base, directory, credentials, descriptor, memory_directory: None });
        Some(HostPath::of_descriptor(descriptor))
    }

    pub(super) fn plain_initrd(&mut self) -> Option<HostPath> {
        let initrd = self.spec.kernel.initrd.clone()?;
        let in_initrd = description(self.hypervisor).credentials == CredentialTransport::Initrd;
        let is_composed = in_initrd && !self.spec.credential_files.is_empty();
        if is_composed {
            self.need_file_for_launcher("initrd", &initrd, Access::Read);
        } else {
            self.need_file("initrd", &initrd, Access::Read);
        }
        let bytes_of = |path: &HostPath| self.facts.file_bytes.get(path).copied().unwrap_or(0);
        let bytes = bytes_of(&initrd) + bytes_of(&self.spec.kernel.image);
        if bytes >= self.spec.memory.mem_mib << 20 {
            let (mib, needed) = (self.spec.memory.mem_mib, bytes.div_ceil(1 << 20));
            let reason = format!(
                "cannot load the kernel and the initrd, {needed} MiB in total, into {mib} MiB of memory; increase mem"
            );
            self.refuse("mem", reason);
        }
        Some(initrd)
    }

    /// Returns the kernel command line: the hypervisor's parameters, those for readiness and the machine id, and the
    /// user's.
    pub(super) fn command_line(&mut self, own: &[&str], added_bytes: usize) -> String {
        let mut line = KernelCommandLine::new();
        for parameter in own {
            line.push(*parameter);
        }
        if let Some(port) = self.notify_port() {
            // systemd reads this credential, connects to this port of the host, and sends READY=1.
            line.push(format!("systemd.set_credential=vmm.notify_socket:vsock-stream:2:{port}"));
        }
        for parameter in &self.spec.kernel.parameters {
            line.push(parameter.as_str());
        }
        let added_bytes = added_bytes + self.add_seal(&mut line);
        line.finish(added_bytes).unwrap_or_else(|too_long| {
            let reason = format!(
                "would boot with {} bytes of kernel parameters, but the kernel supports at most {}",
                too_long.bytes,
                crate::cmdline::MAX_BYTES
            );
            self.refuse("kernelParams", reason);
            String::new()
        })
    }

    /// Adds the parameter with which the guest checks a sealed store disk. Before the image has been inspected, it names
    /// what it will contain. Returns by how many bytes it can become longer then.
    fn add_seal(&self, line: &mut KernelCommandLine) -> usize {
        if self.spec.sealed_image.is_none() {
            return 0;
        }
        match &self.facts.store_seal {
            Some(seal) => {
                line.push(format!("{SEAL_PARAMETER}={}:{}", seal.root_hash, seal.hash_offset_bytes));
                0
            }
            None => {
                line.push(format!("{SEAL_PARAMETER}={UNKNOWN_SEAL}"));
                MAX_SEAL_BYTES - UNKNOWN_SEAL.len()
            }
        }
    }

    /// Returns the kernel parameter for the machine id, for hypervisors without SMBIOS.
    pub(super) fn machine_id_parameter(&self) -> String {
        let id = self.spec.machine_id.as_deref().unwrap_or_default();
        if id.is_empty() { String::new() } else { format!("systemd.machine_id={}", id.replace('-', "")) }
    }

    fn notify_port(&self) -> Option<u32> {
        self.spec.vsock.as_ref()?.notify_port
    }

    /// Returns the queue pairs of an interface, for hypervisors that support one pair per CPU.
    pub(super) fn queue_pairs(&self) -> u32 {
        self.spec.vcpu.min(MAX_QUEUE_PAIRS)
    }

    pub(super) fn need_tap(&mut self, name: &str, queue_pairs: u32) {
        self.need_device("interfaces", "/dev/net/tun", "modprobe tun");
        self.needs.taps.push(TapNeed {
            name: name.to_owned(),
            owner: self.spec.user.clone(),
            multi_queue: queue_pairs > 1,
            vnet_hdr: true,
            queue_pairs,
        });
    }

    /// Returns the descriptors of a macvtap that the hypervisor inherits, one per queue pair.
    pub(super) fn need_macvtap(
        &mut self,
        interface: &CheckedInterface,
        (link, mode): (&str, MacvtapMode),
        queue_pairs: u32,
    ) -> Vec<i32> {
        let descriptors: Vec<_> = (0..queue_pairs).map(|_| self.descriptor()).collect();
        self.needs.macvtaps.push(MacvtapNeed {
            name: interface.id.clone(),
            link: link.to_owned(),
            mode,
            mac: interface.mac.clone(),
            owner: self.spec.user.clone(),
            descriptors: descriptors.clone(),
        });
        descriptors
    }

    /// Adds the user's arguments. Refuses options that the launcher already sets.
    pub(super) fn add_extra_arguments(
        &mut self,
        option: &str,
        arguments: &mut Vec<String>,
        extra: &[String],
        unique_options: &[UniqueOption],
    ) {
        for once in unique_options {
            let own = arguments.iter().any(|argument| once.is(argument));
            let found = extra.iter().find(|argument| once.is(argument)).filter(|_| own);
            if let Some(argument) = found {
                let name = argument.split('=').next().unwrap_or_default();
                self.refuse(
                    option,
                    format!("cannot be given {name}, because the launcher already sets it; {}", once.instead),
                );
            } else if extra.iter().filter(|argument| once.is(argument)).count() > 1 {
                self.refuse(option, format!("accepts {} only once, but it is given twice", once.names.join(" or ")));
            }
        }
        arguments.extend(extra.iter().cloned());
    }

    /// Like [`Self::command_line`], for a hypervisor that supports only ASCII.
    pub(super) fn ascii_command_line(&mut self, own: &[&str], added_bytes: usize) -> String {
        for (index, parameter) in self.spec.kernel.parameters.iter().enumerate() {
            if let Some(character) = parameter.chars().find(|character| !character.is_ascii()) {
                let reason = format!("supports kernel parameters in ASCII only, but this one contains `{character}`");
                self.refuse(format!("kernelParams[{index}]"), reason);
            }
        }
        self.command_line(own, added_bytes)
    }

    /// Returns the launch, or all refusals.
    pub(super) fn finish(mut self, command: Command) -> Result<Launch, Vec<Refusal>> {
        let spec = self.spec;
        let description = description(self.hypervisor);
        let program = command.program.unwrap_or_else(|| description.program(self.architecture()));
        let control = ControlSocket { protocol: description.protocol, path: command.control };
        let (vsock, notification) = self.vsock(description.vsock);
        self.needs.sockets_to_remove.push(control.path.clone());
        if control.path.as_str().len() > MAX_SOCKET_PATH_BYTES {
            let reason = format!(
                "puts its control socket at {}, which has {} bytes, but the path of a Unix socket can have at most \
                 {MAX_SOCKET_PATH_BYTES}",
                control.path,
                control.path.as_str().len()
            );
            self.refuse("socket", reason);
        }
        self.check_bound_sockets(notification.as_ref());
        for file in &command.files {
            let absolute = |path: &HostPath| path.below(&self.facts.state_directory);
            if let Some(disk) = spec.disks.iter().find(|disk| absolute(&disk.image) == absolute(&file.path)) {
                let (option, reason) =
                    (format!("{}.image", disk.option), "has its configuration in this file; choose another");
                self.refuse(&option, reason);
            }
        }
        if spec.console_socket.is_some() && command.console_device.is_none() {
            self.refuse("consoleSocket", "has no serial console to serve, because qemu.serialConsole is off");
        }
        if !self.refusals.is_empty() {
            return Err(self.refusals);
        }
        let program_name = program.as_str().rsplit('/').next().unwrap_or_default().to_owned();
        Ok(Launch {
            version: LAUNCH_VERSION,
            name: spec.name.clone(),
            hypervisor: self.hypervisor,
            process_name: spec.process_name.clone().unwrap_or(program_name),
            program,
            arguments: command.arguments,
            environment: command.environment,
            working_directory: self.facts.state_directory.clone(),
            user: spec.user.clone(),
            files: command.files,
            needs: self.needs,
            disks: guest_disks(&spec.disks, self.hypervisor),
            control: Some(control),
            shutdown: Shutdown { graceful: command.graceful, forced: command.forced },
            console: Console {
                guest_device: command.console_device.map(str::to_owned),
                socket: spec.console_socket.clone(),
            },
            vsock,
            notification,
            balloon: spec.memory.balloon.as_ref().map(|_| BalloonDevice { mem_mib: spec.memory.mem_mib }),
            expected_configuration: command.expected_configuration,
            warnings: self.warnings,
        })
    }

    /// Checks the sockets that the launcher itself binds, by their absolute paths.
    fn check_bound_sockets(&mut self, notification: Option<&GuestNotification>) {
        let console = self.spec.console_socket.clone().map(|path| ("consoleSocket", path));
        let notified = match notification {
            Some(GuestNotification { listen: NotificationSocket::Unix(path), .. }) => {
                Some(("vsock.socket", path.clone()))
            }
            _ => None,
        };
        for (option, path) in console.into_iter().chain(notified) {
            let path = path.below(&self.facts.state_directory);
            let bytes = path.as_str().len();
            if bytes > MAX_SOCKET_PATH_BYTES {
                let reason = format!(
                    "needs a socket at {path}, which has {bytes} bytes, but the path of a Unix socket can have \
                     at most {MAX_SOCKET_PATH_BYTES}"
                );
                self.refuse(option, reason);
            }
        }
    }

    fn vsock(&mut self, transport: VsockTransport) -> (Option<VsockEnd>, Option<GuestNotification>) {
        let Some(vsock) = &self.spec.vsock else { return (None, None) };
        let host_end = match transport {
            VsockTransport::Kernel => VsockHostEnd::Kernel,
            VsockTransport::UnixSocket => VsockHostEnd::UnixSocket(vsock.socket.clone()),
        };
        if transport == VsockTransport::Kernel {
            self.need_device("vsock.cid", "/dev/vhost-vsock", "modprobe vhost_vsock");
        } else {
            self.needs.sockets_to_remove.push(vsock.socket.clone());
        }
        let notification = vsock.notify_port.map(|port| GuestNotification {
            port,
            listen: match transport {
                VsockTransport::Kernel => NotificationSocket::Vsock { cid: vsock.cid },
                VsockTransport::UnixSocket => {
                    NotificationSocket::Unix(HostPath::new(format!("{}_{port}", vsock.socket)))
                }
            },
        });
        if let Some(GuestNotification { listen: NotificationSocket::Unix(socket), .. }) = &notification {
            self.needs.sockets_to_remove.push(socket.clone());
        }
        (Some(VsockEnd { cid: vsock.cid, host_end }), notification)
    }
}

/// crosvm attaches a disk that is served after its own.
fn guest_disks(disks: &[Disk], hypervisor: Hypervisor) -> Vec<GuestDisk> {
    let mut guest_disks: Vec<_> = disks.iter().map(|disk| guest_disk(disk, hypervisor)).collect();
    let is_live = disks.first().is_some_and(|disk| matches!(disk.backend, DiskBackend::Live(_)));
    if is_live && hypervisor == Hypervisor::Crosvm {
        for (index, disk) in guest_disks.iter_mut().enumerate() {
            disk.device = device_name(if index == 0 { disks.len() - 1 } else { index - 1 });
        }
    }
    guest_disks
}

fn guest_disk(disk: &Disk, hypervisor: Hypervisor) -> GuestDisk {
    let has_serial = matches!(disk.backend, DiskBackend::Live(_))
        || super::support(hypervisor, crate::capability::Feature::VolumeSerial).is_supported();
    GuestDisk {
        device: disk.device.clone(),
        image: disk.image.clone(),
        read_only: disk.read_only,
        serial: disk.serial.clone().filter(|_| has_serial),
        mount_point: disk.mount_point.clone(),
    }
}
