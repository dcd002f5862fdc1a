//! The devices that llama.cpp computes on, as it lists them itself: whatever it was built for (CUDA, ROCm, Metal, Vulkan), it
//! knows their memory, and this crate needs no library of each maker.

use std::path::Path;

use super::find::ask;

/// No machine has more.
const DEVICES_MAX: usize = 64;
const MIB: u64 = 1 << 20;

/// A device beside the processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// llama.cpp's name for it, for example `CUDA0`.
    pub name: String,
    /// What it is, for people.
    pub description: String,
    /// Its memory in bytes; on a machine with one memory for all, what the device may take of that.
    pub total: u64,
    /// What was free of it when asked.
    pub free: u64,
}

/// Asks `llama-server` for its devices; empty for a machine that computes on its processor alone.
///
/// Takes a second or two where a GPU's driver has to come up. Cancel safe: a program that was asked is killed.
///
/// # Errors
/// Why the program did not answer, for people.
pub async fn devices(server: &Path) -> Result<Vec<Device>, String> {
    Ok(parse(&ask(server, "--list-devices").await?))
}

/// Lines such as `  CUDA0: NVIDIA GeForce RTX 3090 (24135 MiB, 23000 MiB free)`. What has no memory of its own (BLAS) is left
/// out, and so is any line that reads otherwise.
fn parse(text: &str) -> Vec<Device> {
    let lines = text.lines().skip_while(|line| !line.starts_with("Available devices:"));
    lines.filter_map(device).take(DEVICES_MAX).collect()
}

fn device(line: &str) -> Option<Device> {
    let (name, rest) = line.strip_prefix("  ")?.split_once(": ")?;
    let (description, memory) = rest.strip_suffix(" MiB free)")?.rsplit_once(" (")?;
    let (total, free) = memory.split_once(" MiB, ")?;
    let bytes = |text: &str| text.parse::<u64>().ok()?.checked_mul(MIB);
    let total = bytes(total)?;
    let free = bytes(free)?.min(total);
    let bounded = |text: &str| text.chars().filter(|c| !c.is_control()).take(100).collect::<String>();
    (total > 0).then(|| Device { name: bounded(name), description: bounded(description), total, free })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_a_machine_with_two_devices() {
        let text = "ggml_cuda_init: found 1 devices\nAvailable devices:\n  CUDA0: NVIDIA (PCIe) RTX 3090 (24135 MiB, 23000 MiB free)\n  \
                    BLAS: Accelerate (0 MiB, 0 MiB free)\n  Vulkan1: odd (x MiB, 1 MiB free)\n  MTL0: Apple M3 (16000 MiB, 16001 MiB free)\n";
        let found = parse(text);
        let names: Vec<_> = found.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["CUDA0", "MTL0"]);
        assert_eq!(found[0].description, "NVIDIA (PCIe) RTX 3090");
        assert_eq!((found[0].total, found[0].free), (24135 * MIB, 23000 * MIB));
        assert_eq!(found[1].free, found[1].total, "never more than there is");
    }

    #[test]
    fn a_processor_alone_is_no_device() {
        assert_eq!(parse("Available devices:\n  (none)\n"), []);
        assert_eq!(parse("  CUDA0: before the list (1 MiB, 1 MiB free)\n"), []);
        assert_eq!(parse(&format!("Available devices:\n  X: y ({} MiB, 1 MiB free)", u64::MAX)), []);
    }
}
