//! A kernel of Debian's packages with its modules, found where it is installed.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::process;

/// The release to take, if several are installed: a name below `/lib/modules`.
const RELEASE: &str = "WATTLE_LAB_KERNEL";
/// Where programs are that an ordinary user's path lacks.
const SYSTEM_PATH: &str = "/usr/sbin:/sbin";

/// A kernel that has WireGuard as a module.
#[derive(Debug)]
pub(super) struct Debian {
    release: String,
    pub(super) image: PathBuf,
}

impl Debian {
    /// The newest of the kernels made for virtual machines, else the newest of all.
    pub(super) fn find() -> Result<Self> {
        if env::consts::ARCH != "x86_64" {
            bail!("the virtual machine is made for x86-64, and this is {}", env::consts::ARCH);
        }
        let wanted = env::var(RELEASE).ok();
        let mut releases = Vec::new();
        for entry in fs::read_dir("/lib/modules").into_iter().flatten() {
            let Ok(release) = entry?.file_name().into_string() else { continue };
            let modules = Path::new("/lib/modules").join(&release).join("kernel/drivers/net/wireguard");
            let image = PathBuf::from(format!("/boot/vmlinuz-{release}"));
            if modules.is_dir() && image.is_file() && wanted.as_ref().is_none_or(|wanted| *wanted == release) {
                releases.push((release.contains("cloud"), numbers(&release), Self { release, image }));
            }
        }
        releases.sort_by(|(cloud, numbers, _), (other_cloud, other_numbers, _)| (cloud, numbers).cmp(&(other_cloud, other_numbers)));
        let newest = releases.pop().map(|(.., debian)| debian);
        newest.context("no kernel with a WireGuard module is installed: run scripts/setup, or install the package linux-image-cloud-amd64")
    }

    /// Files of a module and of those that it needs, in the order in which they are to be loaded.
    pub(super) fn module(&self, name: &str) -> Result<Vec<PathBuf>> {
        let mut modprobe = system_command("modprobe");
        modprobe.args(["--set-version", &self.release, "--show-depends", name]);
        let lines = process::run(modprobe, None)?;
        // A module that is built in has no file.
        Ok(lines.lines().filter_map(|line| line.strip_prefix("insmod ")?.split_whitespace().next()).map(PathBuf::from).collect())
    }
}

impl fmt::Display for Debian {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {}", self.release)
    }
}

/// A program that may be in a folder for root's programs only.
pub(super) fn system_command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", format!("{}:{SYSTEM_PATH}", env::var("PATH").unwrap_or_default()));
    command
}

/// The numbers in a release, to compare by: `6.1.0-56-cloud-amd64` is 6, 1, 0, 56, 64.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_by_number() {
        assert!(numbers("6.12.0-1-cloud-amd64") > numbers("6.1.0-56-cloud-amd64"));
        assert!(numbers("6.1.0-56-cloud-amd64") > numbers("6.1.0-9-cloud-amd64"));
    }
}
