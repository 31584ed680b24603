//! Reads manifest files again when they change: `sepal run --manifests`.

use tokio::sync::mpsc;

use crate::config::manifest_files::ManifestFiles;
use crate::file_watch::FileWatch;
use crate::proxy::sync::update::Update;

/// Sends new inputs after each change, until the channel closes.
pub async fn follow(mut files: ManifestFiles, mut watch: FileWatch, updates: mpsc::Sender<Update>) {
    loop {
        watch.changed().await;
        // Parsing a large cluster takes a while. It runs on another thread, so that the loop can go on.
        let reread = tokio::task::spawn_blocking(move || {
            let inputs = files.reread();
            (files, inputs)
        });
        let inputs;
        (files, inputs) = match reread.await {
            Ok(done) => done,
            // Pass a panic on: this task is supervised.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return,
            },
        };
        if updates.send(Update::Inputs(Box::new(inputs))).await.is_err() {
            return;
        }
    }
}
