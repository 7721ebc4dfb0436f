//! cloud-hypervisor: option_parser/src/lib.rs. Commas inside double quotes and brackets do not separate. The quotes are
//! removed; only recent versions support a doubled quote. Older versions also count brackets inside quotes, and trim
//! the value after removing the quotes, so the values that are written here avoid both.

pub(super) fn escape(value: &str) -> Result<String, &'static str> {
    if value.is_empty() {
        return Err("it treats an empty value as a missing one");
    }
    if value.contains('"') {
        return Err("a double quote cannot be written in its options");
    }
    if value.trim() != value {
        return Err("it removes blanks at the ends of a value");
    }
    if !has_matching_brackets(value) {
        return Err("unbalanced brackets cannot be written in its options");
    }
    let plain = !value.contains([',', '[', ']']);
    Ok(if plain { value.to_owned() } else { format!("\"{value}\"") })
}

pub(super) fn escape_in_list(value: &str) -> Result<String, &'static str> {
    if value.is_empty() || value.trim() != value || value.contains([',', '"', '[', ']']) {
        return Err("an element of its lists cannot be empty, have blanks at its ends, commas, quotes or brackets");
    }
    Ok(value.to_owned())
}

fn has_matching_brackets(value: &str) -> bool {
    let mut open = 0_u32;
    for character in value.chars() {
        match character {
            '[' => open += 1,
            ']' if open == 0 => return false,
            ']' => open -= 1,
            _ => {}
        }
    }
    open == 0
}
