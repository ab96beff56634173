//! What this machine has for VMs: told to the coordinator, who has new VMs placed by it.

use unasnap_protocol::placement::Capacity;

/// As it is now. What cannot be found out is 0: then nothing is placed here.
#[must_use]
pub fn of_this_host() -> Capacity {
    let cores = std::thread::available_parallelism()
        .map_or(0, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Capacity { cores, memory_mb: total_kib(&memory).unwrap_or(0) >> 10 }
}

/// See proc_meminfo(5).
fn total_kib(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       24683520 kB\nMemFree:          104004 kB\n";
        assert_eq!(total_kib(text), Some(24_683_520));
        assert_eq!(total_kib("MemFree: 1 kB"), None);
        let here = of_this_host();
        assert!(here.cores > 0 && here.memory_mb > 0, "{here:?}");
    }
}
