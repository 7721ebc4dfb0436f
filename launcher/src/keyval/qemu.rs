//! qemu: util/qemu-option.c (`get_opt_value`) and util/keyval.c read a doubled comma as one comma of the value.

pub(super) fn escape(value: &str) -> String {
    value.replace(',', ",,")
}
