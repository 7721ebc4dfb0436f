# Whether a text is the name of a machine: the rule of the launcher, in launcher/src/name.rs.
name: builtins.match "[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}" name != null
