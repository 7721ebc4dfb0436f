//! crosvm: serde_keyvalue/src/key_values.rs. A value may be in double quotes, in which `\` escapes `"` and `\`.

pub(super) fn escape(value: &str) -> Result<String, &'static str> {
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._-+:@%~".contains(character);
    if !value.is_empty() && value.chars().all(plain) {
        return Ok(value.to_owned());
    }
    Ok(format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")))
}
