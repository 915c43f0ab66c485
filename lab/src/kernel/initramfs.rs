//! The few files with which the machine starts: a shell, the modules to reach the host's files, and a script.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::debian::Debian;
use crate::process;

/// What it takes to reach the host's files.
const MODULES: [&str; 3] = ["virtio_pci", "virtiofs", "overlay"];
/// What the script calls.
const APPLETS: [&str; 8] = ["sh", "cat", "echo", "insmod", "mkdir", "mount", "umount", "switch_root"];
const BUSYBOX: &str = "/bin/busybox";

/// Writes `initramfs` to the folder, and beside it `guest`, the script that goes on where it ends.
pub(super) fn build(debian: &Debian, folder: &Path) -> Result<()> {
    write_script(&folder.join("guest"), include_str!("guest"))?;

    let tree = folder.join("initramfs.d");
    for name in ["bin", "modules", "proc", "dev", "host", "above", "root"] {
        fs::create_dir_all(tree.join(name))?;
    }
    write_script(&tree.join("init"), include_str!("init"))?;
    let busybox = fs::read(BUSYBOX).with_context(|| format!("reading {BUSYBOX}: install the package busybox-static"))?;
    // A section that only programs have which need a loader.
    let is_static = !busybox.windows(8).any(|bytes| bytes == b"\0.interp");
    ensure!(is_static, "{BUSYBOX} needs libraries: install the package busybox-static");
    fs::write(tree.join("bin/busybox"), busybox)?;
    fs::set_permissions(tree.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    APPLETS.iter().try_for_each(|name| symlink("busybox", tree.join("bin").join(name)))?;

    let mut order = Vec::new();
    for module in MODULES {
        for path in debian.module(module)? {
            let file = path.file_name().and_then(|name| name.to_str()).context("a module without a name")?;
            let name = file.split_once('.').map_or(file, |(name, _)| name).to_owned();
            if !order.contains(&name) {
                fs::write(tree.join("modules").join(&name), unpacked(&path)?)?;
                order.push(name);
            }
        }
    }
    fs::write(tree.join("modules/order"), order.join("\n") + "\n")?;

    let mut cpio = Command::new("sh");
    cpio.args(["-c", "find . | cpio --create --format=newc --owner=0:0 --quiet >../initramfs"]).current_dir(&tree);
    process::run(cpio, None).context("packing the initramfs")?;
    fs::remove_dir_all(&tree)?;
    Ok(())
}

/// A module as the kernel takes it.
fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("reading {}", path.display())),
    };
    let mut unpack = Command::new(program);
    let output = process::output(unpack.args(["--decompress", "--stdout"]).arg(path), None)?;
    ensure!(output.status.success(), "{program} {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}

pub(super) fn write_script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(Into::into)
}
