//! Images of files: answered at once, copied behind, one at a time.

use std::sync::{Arc, PoisonError};

use kiln_model::ImageId;

use super::{NoticeEvent, Shared, Supervisor, SupervisorError};
use crate::images::{AlsoImage, Image, ImportRequest};
use crate::instances::{LaunchError, lifecycle::chain};
use crate::progress::Silent;

impl Supervisor {
    /// Makes an image of a file of this host. It is pending when this returns; should this process die, the next
    /// daemon goes on with it.
    pub fn import_image(
        &self,
        request: &ImportRequest,
        description: &str,
        also: &mut AlsoImage<'_>,
    ) -> Result<Image, SupervisorError> {
        let parts = self.shared.parts();
        let begun = parts.images().begin_import(request, description, parts.clock.as_ref(), also);
        let image = begun.map_err(LaunchError::from)?;
        Shared::import_behind(&self.shared, image.id);
        Ok(image)
    }
}

impl Shared {
    /// Copies the file of a pending image in a thread of its own. Nobody waits for it: what is cut off is begun
    /// again by the next daemon.
    pub(super) fn import_behind(shared: &Arc<Shared>, id: ImageId) {
        let own = Arc::clone(shared);
        let body = move || {
            let _one = own.importing.lock().unwrap_or_else(PoisonError::into_inner);
            match own.parts().images().carry_out(id, &Silent) {
                Ok(None) => {}
                Ok(Some(image)) => {
                    if let Some(why) = &image.failure {
                        tracing::warn!(image = %id, "it could not be made: {why}");
                    }
                    let event = NoticeEvent::Image { image: id, progress: image.progress };
                    own.parts().notices.tell(own.now(), event);
                }
                Err(e) => tracing::warn!(image = %id, "its end could not be noted: {}", chain(&e)),
            }
        };
        if let Err(e) = std::thread::Builder::new().name("import".to_owned()).spawn(body) {
            // It stays pending, for the next daemon.
            tracing::error!(image = %id, "no thread for it: {e}");
        }
    }

    /// Goes on with what an earlier daemon was copying.
    pub(super) fn resume_imports(shared: &Arc<Shared>) -> Result<(), SupervisorError> {
        for id in shared.parts().images().pending_imports().map_err(LaunchError::from)? {
            Shared::import_behind(shared, id);
        }
        Ok(())
    }
}
