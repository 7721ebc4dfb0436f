//! Validation of the kernel, its parameters, the machine id, the credentials and the passed-through devices.

use super::findings::Findings;
use super::names;
use crate::spec::{Device, DeviceBus, MachineSpec, UsbAddress};

pub(super) fn check(spec: &MachineSpec, findings: &mut Findings) {
    findings.require("kernel", names::path(&spec.kernel));
    for (option, path) in [("vmlinux", &spec.vmlinux), ("initrd", &spec.initrd)] {
        if let Some(path) = path {
            findings.require(option, names::path(path));
        }
    }
    for (index, parameter) in spec.kernel_params.iter().enumerate() {
        findings.require(format!("kernelParams[{index}]"), names::no_control_characters(parameter));
    }
    if spec.machine_id.as_deref().is_some_and(|id| names::canonical_uuid(id).is_none()) {
        findings
            .problem("machineId", "must be a UUID such as `a67472e5-570e-5c8a-b18c-ae3c77701050`, and not all zeros");
    }
    for (name, path) in &spec.credential_files {
        let option = format!("credentialFiles.{name}");
        findings.require(&option, names::credential(name));
        findings.require(&option, names::path(path));
    }
    for (index, device) in spec.devices.iter().enumerate() {
        findings.require(format!("devices[{index}].path"), device_path(device));
    }
    let addresses =
        spec.devices.iter().enumerate().map(|(index, device)| (format!("devices[{index}].path"), device.path.as_str()));
    findings.require_distinct("device", addresses);
}

fn device_path(device: &Device) -> Result<(), String> {
    let path = device.path.as_str();
    match device.bus {
        DeviceBus::Pci if is_pci_address(path) => Ok(()),
        DeviceBus::Pci => {
            Err(format!("`{path}` is not a PCI address; write it as `lspci -D` prints it, such as `0000:01:00.0`"))
        }
        DeviceBus::Usb if UsbAddress::parse(path).is_some() => Ok(()),
        DeviceBus::Usb => Err(format!(
            "`{path}` does not identify a USB device; write `vendorid=0xabcd,productid=0x0123` or \
             `hostbus=1,hostaddr=2`"
        )),
    }
}

/// Whether the text is `DDDD:BB:DD.F` in hexadecimal digits.
fn is_pci_address(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.len() == 12
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            4 | 7 => *byte == b':',
            10 => *byte == b'.',
            11 => (b'0'..=b'7').contains(byte),
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pci_addresses_with_a_domain_are_valid() {
        for (path, expected) in
            [("0000:01:00.0", true), ("01:00.0", false), ("0000:01:00.8", false), ("0000:01:00.0,x=y", false)]
        {
            assert_eq!(is_pci_address(path), expected, "{path}");
        }
    }
}
