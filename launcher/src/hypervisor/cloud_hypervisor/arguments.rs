//! The words of Cloud Hypervisor's command line: options, and values that consist of `key=value`.

/// The option of the spec with the user's words.
pub(super) const OPTION: &str = "cloudHypervisor.extraArgs";

/// An option and the words up to the next option.
pub(super) struct Item {
    pub(super) option: String,
    pub(super) values: Vec<String>,
}

impl Item {
    /// Returns the pairs of all values.
    pub(super) fn pairs(&self) -> Pairs {
        self.values.iter().flat_map(|value| pairs(value)).collect()
    }
}

/// `key=value` in their order; a word without `=` has no value.
pub(super) type Pairs = Vec<(String, Option<String>)>;

/// Splits arguments into options and values. A value is the next words, or follows an equals sign.
pub(super) fn items(arguments: &[String]) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    for argument in arguments {
        match (argument.starts_with("--"), argument.split_once('='), items.last_mut()) {
            (true, Some((option, value)), _) => {
                items.push(Item { option: option.to_owned(), values: vec![value.to_owned()] });
            }
            (false, _, Some(item)) if !argument.starts_with('-') => item.values.push(argument.clone()),
            _ => items.push(Item { option: argument.clone(), values: Vec::new() }),
        }
    }
    items
}

/// Splits a value into its pairs. Commas inside quotes and brackets do not separate.
pub(super) fn pairs(text: &str) -> Pairs {
    let (mut parts, mut part, mut open, mut quoted) = (Vec::new(), String::new(), 0_i32, false);
    for character in text.chars() {
        match character {
            '"' => quoted = !quoted,
            '[' => open += 1,
            ']' => open -= 1,
            ',' if open == 0 && !quoted => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(character);
    }
    parts.push(part);
    let pair = |part: String| match part.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (part, None),
    };
    parts.into_iter().filter(|part| !part.is_empty()).map(pair).collect()
}

/// The inverse of [`pairs`].
pub(super) fn text_of(pairs: Pairs) -> String {
    let words = pairs.into_iter().map(|(key, value)| match value {
        Some(value) => format!("{key}={value}"),
        None => key,
    });
    words.collect::<Vec<_>>().join(",")
}

/// Returns the value of a key.
pub(super) fn text<'pairs>(pairs: &'pairs Pairs, key: &str) -> Option<&'pairs str> {
    pairs.iter().find(|(name, _)| name == key).and_then(|(_, value)| value.as_deref())
}

/// Returns the value of a key if it is a number.
pub(super) fn number(pairs: &Pairs, key: &str) -> Option<u64> {
    text(pairs, key)?.parse().ok()
}

/// Returns whether a key has the value that Cloud Hypervisor reads as true.
pub(super) fn is_on(pairs: &Pairs, key: &str) -> bool {
    matches!(text(pairs, key), Some("on" | "true"))
}

/// Returns the number of bytes of a size such as `2M`.
pub(super) fn bytes(size: &str) -> Option<u64> {
    let shift = match size.chars().last()? {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        _ => 0,
    };
    let digits = if shift == 0 { size } else { &size[..size.len() - 1] };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
