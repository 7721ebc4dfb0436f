//! kvmtool: disk/core.c (`disk_img_name_parser`) and builtin-run.c (`virtio_9p_rootdir_parser`) split at commas and
//! support no escaping. virtio/net.c (`netdev_parser`) also splits at equals signs, but none of its values can contain
//! one.

pub(super) fn escape(value: &str) -> Result<String, &'static str> {
    if value.is_empty() {
        return Err("it skips empty values");
    }
    if value.contains(',') {
        return Err("a comma cannot be written in its options");
    }
    Ok(value.to_owned())
}
