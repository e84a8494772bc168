//! `kiln env`: what AWS tools need to talk to `kilnd`.

use std::path::Path;

use kiln_controlplane::credentials::AccessKey;
use kiln_controlplane::metadata::REGION;
use kiln_controlplane::state::Vault;
use kiln_controlplane::state::dir::{DEFAULT_ENDPOINT, ENDPOINT};

use crate::error::Failure;

/// Prints shell commands that set the endpoint, the region and the key of the account.
pub fn env(state_dir: &Path) -> Result<(), Failure> {
    let plane = crate::open(state_dir)?;
    let vault = Vault::open(plane.store(), plane.state_dir())?;
    let key = AccessKey::root(&vault)?;
    // Where no daemon runs, where it would be.
    let noted = std::fs::read_to_string(plane.state_dir().run().join(ENDPOINT));
    let endpoint = noted.ok().map_or(DEFAULT_ENDPOINT.to_owned(), |text| text.trim().to_owned());
    let secret = key.secret.expose();
    crate::print(&format!(
        "export AWS_ENDPOINT_URL={endpoint}\nexport AWS_REGION={REGION}\nexport AWS_DEFAULT_REGION={REGION}\n\
         export AWS_ACCESS_KEY_ID={}\nexport AWS_SECRET_ACCESS_KEY={secret}\nunset AWS_SESSION_TOKEN\n",
        key.id
    ))
}
