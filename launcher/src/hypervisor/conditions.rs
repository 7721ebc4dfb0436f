//! Conditions between the options of a hypervisor that each is valid without the others, as data: the hypervisor would
//! refuse to start.

use super::launch_builder::LaunchBuilder;

/// A condition for an option that the user may give.
pub(super) enum Condition {
    /// The option is accepted only together with one of the others.
    Needs(&'static str, &'static [&'static str]),
    /// The option is not accepted together with any of the others.
    Excludes(&'static str, &'static [&'static str]),
    /// The option is not accepted beside the launcher's own ones; what to do instead.
    Refused(&'static str, &'static str),
    /// At most one of these options is accepted, and only once.
    AtMostOne(&'static [&'static str]),
}

/// The user's arguments, and those of the whole command line.
pub(super) struct GivenArguments<'arguments> {
    /// The option of the spec that contains the user's arguments.
    pub(super) option: &'static str,
    /// The user's arguments.
    pub(super) extra: &'arguments [String],
    /// The launcher's own arguments.
    pub(super) own: &'arguments [String],
}

impl GivenArguments<'_> {
    /// Returns how often the user gives the option.
    pub(super) fn count(&self, name: &str) -> usize {
        self.extra.iter().filter(|argument| is_option(argument, name)).count()
    }

    /// Whether the user gives the option.
    pub(super) fn has_extra(&self, name: &str) -> bool {
        self.count(name) > 0
    }

    /// Whether the command line has the option.
    pub(super) fn has(&self, name: &str) -> bool {
        self.has_extra(name) || self.own.iter().any(|argument| is_option(argument, name))
    }
}

/// Whether the argument is this option, with or without a value.
fn is_option(argument: &str, name: &str) -> bool {
    argument.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

/// Returns the values of an option, in order: the next argument, or what follows an equals sign.
pub(super) fn values<'arguments>(
    arguments: &'arguments [String],
    name: &'static str,
) -> impl Iterator<Item = &'arguments str> {
    arguments.iter().enumerate().filter_map(move |(index, argument)| match argument.strip_prefix(name)? {
        "" => arguments.get(index + 1).map(String::as_str),
        rest => rest.strip_prefix('='),
    })
}

/// Refuses arguments of the user that violate a condition.
pub(super) fn check_conditions(builder: &mut LaunchBuilder<'_>, given: &GivenArguments<'_>, conditions: &[Condition]) {
    for condition in conditions {
        let reason = match condition {
            Condition::Needs(option, others) => {
                let is_violated = given.has_extra(option) && !others.iter().any(|other| given.has(other));
                is_violated.then(|| format!("accepts {option} only together with {}", others.join(" or ")))
            }
            Condition::Excludes(option, others) => {
                let is_extra = |other: &&&str| given.has_extra(option) || given.has_extra(other);
                let found = others.iter().filter(is_extra).find(|other| given.has(other)).filter(|_| given.has(option));
                found.map(|other| format!("does not accept {option} together with {other}"))
            }
            Condition::Refused(option, instead) => {
                given.has_extra(option).then(|| format!("does not accept {option} here: {instead}"))
            }
            Condition::AtMostOne(options) => {
                let is_one = |argument: &&String| options.iter().any(|option| is_option(argument, option));
                let count = given.extra.iter().chain(given.own).filter(is_one).count();
                let is_violated = count > 1 && given.extra.iter().any(|argument| is_one(&argument));
                is_violated
                    .then(|| format!("accepts {} only once, but the command would have {count}", options.join(" or ")))
            }
        };
        if let Some(reason) = reason {
            builder.refuse(given.option, reason);
        }
    }
}
