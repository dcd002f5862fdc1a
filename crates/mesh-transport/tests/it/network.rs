//! A network of one interface with the address 10.77.0.1, where nobody else is.

use std::{process::Command, time::Duration};

/// Set in a process that has a network of its own.
const INSIDE: &str = "QMT_TEST_OWN_NETWORK";

/// Whether this is one.
pub(crate) fn is_in_a_network_of_its_own() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs a test of this program again, alone, in a network namespace with one interface; `false` where that cannot be.
pub(crate) async fn runs_in_a_network_of_its_own(test: &str) -> bool {
    let exe = std::env::current_exe().unwrap();
    let set_up = "ip link set lo up && ip link add lan0 type veth peer name lan1 && ip addr add 10.77.0.1/24 dev lan0 \
                  && ip link set lan0 up && ip link set lan1 up && ip route add 224.0.0.0/4 dev lan0";
    let probe = Command::new("unshare").args(["--map-root-user", "--net", "sh", "-c", set_up]).output();
    match probe {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            eprintln!(
                "skipped: no network namespace here ({})",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            return false;
        }
        Err(error) => {
            eprintln!("skipped: no unshare here ({error})");
            return false;
        }
    }
    let script = format!("{set_up} && exec \"$0\" --exact {test} --nocapture");
    let mut command = tokio::process::Command::new("unshare");
    command
        .args(["--map-root-user", "--net", "sh", "-c", &script])
        .arg(exe)
        .env(INSIDE, "1")
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    true
}
