//! Times in the cluster's configuration.

use std::time::{Duration, SystemTime};

/// Whether a time has passed. If it cannot be read, it is assumed to be in the future.
pub(super) fn has_passed(text: &str, now: SystemTime) -> bool {
    parse_time(text).is_some_and(|time| time <= now)
}

/// Reads a time as `crm_resource` writes it, `2026-11-29 16:52:43Z` or `2026-11-29 17:52:43 +01:00`, and in RFC 3339.
fn parse_time(text: &str) -> Option<SystemTime> {
    if text.ends_with('Z') {
        return humantime::parse_rfc3339_weak(text).ok();
    }
    let (time, offset) = text.split_at_checked(text.len().checked_sub("+01:00".len())?)?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let seconds = hours.parse::<u64>().ok()? * 3600 + minutes.parse::<u64>().ok()? * 60;
    let time = humantime::parse_rfc3339_weak(time.trim_end()).ok()?;
    match offset.get(..1)? {
        "+" => time.checked_sub(Duration::from_secs(seconds)),
        "-" => time.checked_add(Duration::from_secs(seconds)),
        _ => None,
    }
}
