//! Detecting the host's graphics: render nodes for drawing, and the desktop session for windows.

use crate::facts::{Desktop, RenderNode};
use crate::path::HostPath;
use nix::unistd::{AccessFlags, access};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Detects the session of this process and the graphics cards in `/dev/dri`.
pub(super) fn probe() -> Desktop {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    Desktop {
        wayland_socket: wayland_socket(variable("WAYLAND_DISPLAY"), variable("XDG_RUNTIME_DIR")),
        x11_display: variable("DISPLAY").map(|display| display.to_string_lossy().into_owned()),
        render_node: render_node(Path::new("/dev/dri")),
    }
}

/// Returns the path of the Wayland socket. The display is a path, or a name in the runtime directory:
/// wl_display_connect(3).
fn wayland_socket(display: Option<OsString>, runtime_directory: Option<OsString>) -> Option<HostPath> {
    let display = PathBuf::from(display?);
    let path = if display.is_absolute() { display } else { PathBuf::from(runtime_directory?).join(display) };
    Some(HostPath::new(path.to_string_lossy()))
}

/// Returns the first render node that this process can read and write, in numerical order.
fn render_node(directory: &Path) -> RenderNode {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let is_render_node =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("renderD"));
    let mut nodes: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_render_node).collect();
    nodes.sort();
    let usable = nodes.iter().find(|node| access(node.as_path(), AccessFlags::R_OK | AccessFlags::W_OK).is_ok());
    match (usable, nodes.first()) {
        (Some(node), _) => RenderNode::Usable(HostPath::new(node.to_string_lossy())),
        (None, Some(node)) => RenderNode::Unusable(format!(
            "the user who runs the machine cannot read and write {}; add that user to the group render",
            node.display()
        )),
        (None, None) => RenderNode::Unusable(format!("there is no {}/renderD*", directory.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wayland_display_is_a_path_or_a_name_in_the_runtime_directory() {
        let socket = |display: &str, directory: Option<&str>| {
            wayland_socket(Some(display.into()), directory.map(Into::into)).map(|path| path.to_string())
        };
        assert_eq!(socket("wayland-1", Some("/run/user/7")).as_deref(), Some("/run/user/7/wayland-1"));
        assert_eq!(socket("/tmp/wl", Some("/run/user/7")).as_deref(), Some("/tmp/wl"));
        assert_eq!(socket("/tmp/wl", None).as_deref(), Some("/tmp/wl"));
        assert_eq!(socket("wayland-1", None), None);
        assert_eq!(wayland_socket(None, Some("/run/user/7".into())), None);
    }

    #[test]
    fn the_first_render_node_is_used_and_a_missing_one_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("dri");
        let reason = format!("there is no {}/renderD*", missing.display());
        assert_eq!(render_node(&missing), RenderNode::Unusable(reason));
        for name in ["card0", "renderD129", "renderD128"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let first = directory.path().join("renderD128");
        assert_eq!(render_node(directory.path()), RenderNode::Usable(HostPath::new(first.to_str().unwrap())));
    }
}
