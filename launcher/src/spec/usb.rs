//! The address of a USB device, in the syntax of qemu's usb-host.

/// Which USB device is meant. A property that is `None` matches any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsbAddress {
    /// The vendor's id.
    pub vendor_id: Option<u32>,
    /// The product's id.
    pub product_id: Option<u32>,
    /// The number of its bus.
    pub bus: Option<u32>,
    /// Its address on the bus.
    pub address: Option<u32>,
    /// The ports that lead to it, such as `1.4`.
    pub port: Option<String>,
}

impl UsbAddress {
    /// Parses comma-separated pairs such as `vendorid=0xabcd,productid=0x0123`. Returns `None` if qemu would refuse the text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parsed = Self::default();
        for pair in text.split(',') {
            let (key, value) = pair.split_once('=')?;
            if key == "hostport" {
                let is_port = value.split('.').all(|part| number(part).is_some());
                if !is_port || parsed.port.replace(value.to_owned()).is_some() {
                    return None;
                }
                continue;
            }
            // The limits of qemu's usb_host_realize.
            let (property, largest) = match key {
                "vendorid" => (&mut parsed.vendor_id, 0xffff),
                "productid" => (&mut parsed.product_id, 0xffff),
                "hostbus" => (&mut parsed.bus, u32::MAX),
                "hostaddr" => (&mut parsed.address, 127),
                _ => return None,
            };
            let value = number(value).filter(|number| *number <= largest)?;
            if property.replace(value).is_some() {
                return None;
            }
        }
        Some(parsed)
    }

    /// Whether a device whose properties are all known is meant. qemu takes 0 for any.
    pub fn matches(&self, device: &Self) -> bool {
        let numbers = [
            (self.vendor_id, device.vendor_id),
            (self.product_id, device.product_id),
            (self.bus, device.bus),
            (self.address, device.address),
        ];
        numbers.into_iter().all(|(wanted, found)| wanted.is_none_or(|wanted| wanted == 0 || Some(wanted) == found))
            && (self.port.is_none() || self.port == device.port)
    }
}

/// Parses a number as qemu does: hexadecimal after `0x` or `0X`, octal after `0`.
fn number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    let is_number = digits.chars().all(|character| character.is_ascii_hexdigit());
    u32::from_str_radix(digits, radix).ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_qemu_refuses_are_refused() {
        for (text, expected) in [
            ("vendorid=0xabcd,productid=0x0123", true),
            ("vendorid=0X1D6B", true),
            ("hostbus=1,hostport=1.2", true),
            ("hostbus=010,hostaddr=127", true),
            ("vendorid=0xabcd,id=x", false),
            ("vendorid=", false),
            ("", false),
            ("vendorid=0x12345", false),
            ("vendorid=abcd", false),
            ("hostbus=+1", false),
            ("hostbus=09", false),
            ("hostaddr=128", false),
            ("hostbus=4294967296", false),
            ("hostport=a.b", false),
            ("hostbus=1,hostbus=2", false),
        ] {
            assert_eq!(UsbAddress::parse(text).is_some(), expected, "{text}");
        }
    }
}
