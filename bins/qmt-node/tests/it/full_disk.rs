//! A disk without room: nobody is admitted, and nothing is forgotten.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::Command;

use mesh_control::{ErrorCode, InviteRequest};

use crate::support::Host;
use crate::support::process::Folder;

/// Mounts a small file system on the home, in a mount namespace of the node's own, so that it goes with the node.
pub(crate) const ON_A_SMALL_DISK: [&str; 5] = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount -t tmpfs -o size=1m,mode=700 tmpfs \"$QMT_HOME\" && exec \"$0\" \"$@\"",
];

pub(crate) fn may_mount(folder: &Folder) -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["--mount", "mount", "-t", "tmpfs", "tmpfs"]).arg(folder.home());
    match probe.output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            println!(
                "skipped: no small disk without the right to mount: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            false
        }
        Err(error) => {
            println!("skipped: no small disk without unshare(1): {error}");
            false
        }
    }
}

/// Takes the last byte of the disk.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    loop {
        match file.write(&[0; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_admits_nobody_and_the_invite_holds_when_there_is_room_again() {
    let folder = Folder::new();
    std::fs::create_dir(folder.home()).unwrap();
    if !may_mount(&folder) {
        return;
    }
    let issuer = folder.start_inside(&ON_A_SMALL_DISK, &["--port", "0"]).await;
    let invite = issuer.client.invite(&InviteRequest::default()).await.unwrap();
    let joiner = Host::new("joiner").await;
    let filler = issuer.inside(&folder.home()).join("filler");
    fill(&filler);

    let error = joiner.refused(&invite.token).await;
    assert_eq!(error.code, ErrorCode::InviteRefused, "{error:?}");
    assert!(error.message.contains("could not record the use of the invite"), "{error:?}");
    assert!(error.mend.as_ref().is_some_and(|mend| mend.contains("try again")), "{error:?}");
    assert!(joiner.client.status().await.unwrap().scopes.is_empty());
    assert_eq!(issuer.client.invites().await.unwrap()[0].uses, 0);
    assert_eq!(issuer.client.nodes().await.unwrap().len(), 1);
    // The issuer's own log has the reason, to which the joiner is sent.
    let written = folder.written();
    assert!(written.contains("could not be recorded") && written.contains("full"), "{written}");
    let another = issuer.client.invite(&InviteRequest::default()).await;
    let error = crate::support::api_error(another);
    assert_eq!(error.code, ErrorCode::Storage, "{error:?}");
    assert!(error.mend.as_ref().is_some_and(|mend| mend.contains("free space")), "{error:?}");
    assert_eq!(issuer.client.invites().await.unwrap().len(), 1);

    std::fs::remove_file(&filler).unwrap();
    let joined = joiner.join(&invite.token).await;
    assert_eq!(joined.scope, invite.scope);
    let invites = issuer.client.invites().await.unwrap();
    assert_eq!((invites[0].uses, &invites[0].holders), (1, &vec![joiner.id()]));
    joiner.stop().await;
}
