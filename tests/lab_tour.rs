//! The tour: what Kiln does, feature by feature, with the AWS CLI on booted guests.
//!
//! Needs the lab, and there what `scripts/tour` brings along.

mod support;

use std::path::Path;
use std::process::Command;

#[test]
fn every_step_of_the_tour_holds() {
    let image = lab_image!("tiny");
    let session = Path::new("/lab/tour/session");
    if !session.exists() {
        return support::skip("needs the files of the tour: scripts/test lab");
    }
    // Each step proves itself; the first that does not ends it.
    let status = Command::new(session).arg(image).status().unwrap();
    assert!(status.success(), "{status}");
    // Nothing of the daemon's is left: no machine, namespace or table.
    let left =
        Command::new("sh").args(["-c", "pgrep -a 'kiln'; ip netns; nft list tables"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}
