//! Which parameters of a fence agent are secrets. The NixOS module has a copy of these words, which a test compares.

/// The words in the names of secrets, in lower case and with `_`.
pub const WORDS: [&str; 10] = [
    "api_key",
    "apikey",
    "auth_key",
    "community",
    "credential",
    "passphrase",
    "passw",
    "private_key",
    "secret",
    "token",
];
/// The ends of names whose values are only the place of a secret.
pub const PLACES: [&str; 3] = ["_file", "_path", "_script"];

/// Whether the value of a parameter is a secret. Agents accept `-` for `_`.
pub(super) fn is_secret(parameter: &str) -> bool {
    let plain = parameter.to_ascii_lowercase().replace('-', "_");
    let has_word = plain == "key" || WORDS.iter().any(|word| plain.contains(word));
    has_word && !PLACES.iter().any(|end| plain.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_recognised_but_not_files_and_scripts_that_contain_them() {
        for name in ["passwd", "Password", "snmp-priv-passwd", "community", "token", "secret_key", "apikey", "key"] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["ip", "username", "password_script", "passwd-script", "key_file", "access_key", "lanplus"] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
