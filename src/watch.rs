//! Tells when files' contents change.
//!
//! Events of the file system are only the trigger; what counts is what the files hold. So it does not matter how they change:
//! written in place, renamed over, or as Kubernetes does it, by a swap of the `..data` link that they are reached through, of which
//! the files' own paths get no event. Their directories are watched for that reason, and every 30 seconds the files are looked at
//! anyway, for file systems that give no events and links that lead to other directories.

use std::{
    collections::BTreeSet,
    fmt::Display,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};

/// How often files are looked at without an event.
const POLL: Duration = Duration::from_secs(30);
/// How long files must stay the same before they count as written.
const SETTLE: Duration = Duration::from_millis(200);
/// After this many times as long they are taken as they are.
const SETTLING: usize = 50;

/// Files, and what they held when last looked at: hashes under a key of this process, never the contents.
///
/// Make this before reading the files, so that what changes meanwhile is told. What is not a regular file (a pipe that a shell made)
/// can be read only once and counts as never changing.
#[derive(Debug)]
pub struct Files {
    paths: Arc<[PathBuf]>,
    key: RandomState,
    seen: Contents,
    poll: Duration,
    told: Arc<Notify>,
    /// Begins with the first wait; none where the system has no more of them.
    watcher: OnceLock<Option<RecommendedWatcher>>,
}

/// One hash a file; none where there is nothing to read.
type Contents = Vec<Option<u64>>;

/// Knows the same contents and watches by itself.
impl Clone for Files {
    fn clone(&self) -> Self {
        Files {
            paths: Arc::clone(&self.paths),
            key: self.key.clone(),
            seen: self.seen.clone(),
            poll: self.poll,
            told: Arc::default(),
            watcher: OnceLock::new(),
        }
    }
}

impl Files {
    /// Looks at the files as they are now.
    pub fn new(paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        let paths: Arc<[PathBuf]> = paths.into_iter().map(Into::into).collect();
        let key = RandomState::new();
        let (told, watcher) = (Arc::default(), OnceLock::new());
        Files { seen: contents(&paths, &key), paths, key, poll: POLL, told, watcher }
    }

    /// Waits until a file holds something else than when last looked at, be it that it has gone, and then until nothing has changed
    /// for a fifth of a second. Without files it waits for ever.
    ///
    /// Writers may take longer than that, or write one file of two: whoever reads then must bear it, and is told again once there is
    /// more. Nothing is lost if the future is dropped.
    pub async fn changed(&mut self) {
        if self.paths.is_empty() {
            std::future::pending::<()>().await;
        }
        self.watcher.get_or_init(|| self.watch());
        loop {
            let mut found = self.look().await;
            if found != self.seen {
                for _ in 0..SETTLING {
                    sleep(SETTLE).await;
                    let again = self.look().await;
                    let settled = again == found;
                    found = again;
                    if settled {
                        break;
                    }
                }
                if found != self.seen {
                    self.seen = found;
                    return;
                }
            }
            if timeout(self.poll, self.told.notified()).await.is_ok() {
                // One look for all the events of a busy directory.
                sleep(SETTLE).await;
            }
        }
    }

    async fn look(&self) -> Contents {
        let (paths, key) = (Arc::clone(&self.paths), self.key.clone());
        let looked = spawn_blocking(move || contents(&paths, &key)).await;
        // The runtime is ending.
        looked.unwrap_or_else(|_| self.seen.clone())
    }

    fn watch(&self) -> Option<RecommendedWatcher> {
        let watcher = watcher(&self.paths, Arc::clone(&self.told));
        if let Err(error) = &watcher {
            let seconds = self.poll.as_secs();
            tracing::warn!(%error, "the system does not tell of changed files; they are looked at every {seconds} seconds");
        }
        watcher.ok()
    }
}

/// Files that are read again when they change, or when somebody asks for it.
#[derive(Debug, Clone)]
pub struct Followed {
    files: Files,
    askers: mpsc::UnboundedSender<Asker>,
    /// Taken by whoever follows.
    asked: Arc<Mutex<Option<mpsc::UnboundedReceiver<Asker>>>>,
}

/// Whom to tell what came of a reading.
type Asker = oneshot::Sender<Result<(), String>>;

impl Followed {
    /// Looks at the files as they are now: make this before reading them.
    pub fn new(paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        let (askers, asked) = mpsc::unbounded_channel();
        Followed { files: Files::new(paths), askers, asked: Arc::new(Mutex::new(Some(asked))) }
    }

    /// Has them read by whoever [follows](Self::follow) them, even if nothing has changed. What comes of it can be waited for, or not.
    ///
    /// # Errors
    /// The future's: why what they hold is not in force.
    pub fn ask(&self) -> impl Future<Output = Result<(), String>> + Send + use<> {
        let (asker, told) = oneshot::channel();
        let nothing = self.files.paths.is_empty();
        // Nobody follows what is no regular file. Then the asker is dropped, which its other end hears.
        if !nothing && self.askers.send(asker).is_err() {
            tracing::warn!(files = self.shown(), "these are not read again while this runs");
        }
        let shown = self.shown();
        async move {
            if nothing {
                return Ok(());
            }
            told.await.unwrap_or_else(|_| Err(format!("{shown} cannot be read again while this runs")))
        }
    }

    fn shown(&self) -> String {
        let paths: Vec<_> = self.files.paths.iter().map(|path| path.display().to_string()).collect();
        paths.join(", ")
    }

    /// Calls `read` each time, which may wait for the disk, and tells what came of it, in one of `tasks`. One of the clones has to.
    ///
    /// Where one of them is not a regular file none is followed: reading a pipe again waits for a writer that never comes.
    pub fn follow<T: Send + 'static, E: Display + Send + 'static>(
        &self,
        tasks: &mut JoinSet<()>,
        read: impl Fn() -> Result<T, E> + Clone + Send + 'static,
        tell: impl Fn(Result<T, String>) + Send + 'static,
    ) {
        let mut files = self.files.clone();
        let Some(mut asked) = self.asked.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        if let Some(path) = irregular(&files.paths) {
            tracing::warn!(path = %path.display(), "this is not a regular file: it, and what belongs to it, is not read again");
            return;
        }
        let paths = Arc::clone(&files.paths);
        tasks.spawn(async move {
            loop {
                let mut askers = Vec::new();
                tokio::select! {
                    () = files.changed() => {}
                    asker = asked.recv() => match asker {
                        Some(asker) => askers.push(asker),
                        None => return,
                    },
                }
                // Somebody may ask in the middle of a writing.
                settle(&paths).await;
                // One reading for all who have asked before it.
                while let Ok(asker) = asked.try_recv() {
                    askers.push(asker);
                }
                let read = match irregular(&paths) {
                    // One may have come to be a pipe meanwhile, and would hold up all that is to be read after it.
                    Some(path) => Err(format!("{} is not a regular file", path.display())),
                    None => match spawn_blocking(read.clone()).await {
                        Ok(read) => read.map_err(|error| error.to_string()),
                        Err(error) if error.is_panic() => Err("reading changed files failed".to_owned()),
                        // The runtime is ending.
                        Err(_) => return,
                    },
                };
                let outcome = read.as_ref().map(|_| ()).map_err(Clone::clone);
                tell(read);
                for asker in askers {
                    // Not everybody waits.
                    let _ = asker.send(outcome.clone());
                }
            }
        });
    }
}

/// Watches the files' directories.
fn watcher(paths: &[PathBuf], told: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| match event {
        // Our own looks are not changes.
        Ok(Event { kind: EventKind::Access(kind), .. }) if kind != AccessKind::Close(AccessMode::Write) => {}
        // Of an error the files tell more.
        _ => told.notify_one(),
    })?;
    let directories: BTreeSet<&Path> = paths.iter().map(|path| directory(path)).collect();
    for directory in directories {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// Waits until nothing was written to the files for a while, unless that takes too long.
async fn settle(paths: &[PathBuf]) {
    for _ in 0..SETTLING {
        let age = |path: &PathBuf| std::fs::metadata(path).ok()?.modified().ok()?.elapsed().ok();
        match paths.iter().filter_map(age).min() {
            Some(age) if age < SETTLE => sleep(SETTLE - age).await,
            _ => return,
        }
    }
}

/// The first that is there and is not a regular file.
fn irregular(paths: &[PathBuf]) -> Option<&PathBuf> {
    paths.iter().find(|path| std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()))
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn contents(paths: &[PathBuf], key: &RandomState) -> Contents {
    let regular = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
    paths.iter().map(|path| regular(path).then(|| std::fs::read(path).ok())?.map(|bytes| key.hash_one(bytes))).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, pin::pin};

    use tempfile::TempDir;

    use super::*;

    /// Well before the poll.
    const SOON: Duration = Duration::from_secs(15);

    fn directory_with(files: &[(&str, &str)]) -> TempDir {
        let directory = TempDir::new().unwrap();
        files.iter().for_each(|(name, contents)| fs::write(directory.path().join(name), contents).unwrap());
        directory
    }

    async fn changes_by(files: &mut Files, change: impl FnOnce()) {
        let mut changed = pin!(files.changed());
        assert!(timeout(SETTLE, &mut changed).await.is_err(), "nothing has changed yet");
        change();
        timeout(SOON, changed).await.expect("a change is told");
    }

    #[tokio::test]
    async fn written_in_place_renamed_over_and_removed() {
        let directory = directory_with(&[("a", "1"), ("b", "1")]);
        let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
        let mut files = Files::new([&a, &b]);
        changes_by(&mut files, || fs::write(&b, "2").unwrap()).await;
        changes_by(&mut files, || {
            fs::write(directory.path().join("new"), "2").unwrap();
            fs::rename(directory.path().join("new"), &a).unwrap();
        })
        .await;
        changes_by(&mut files, || fs::remove_file(&a).unwrap()).await;
        changes_by(&mut files, || fs::write(&a, "3").unwrap()).await;
    }

    #[tokio::test]
    async fn swapped_as_kubernetes_does() {
        let mount = directory_with(&[]);
        let volume = |version: &str, contents: &str| {
            fs::create_dir(mount.path().join(version)).unwrap();
            fs::write(mount.path().join(version).join("tls.crt"), contents).unwrap();
            symlink(version, mount.path().join("..data_tmp")).unwrap();
            fs::rename(mount.path().join("..data_tmp"), mount.path().join("..data")).unwrap();
        };
        volume("..1", "1");
        symlink("..data/tls.crt", mount.path().join("tls.crt")).unwrap();
        let mut files = Files::new([mount.path().join("tls.crt")]);
        changes_by(&mut files, || volume("..2", "2")).await;
    }

    #[tokio::test]
    async fn what_changed_before_anyone_asked_is_told() {
        let directory = directory_with(&[("a", "1")]);
        let mut files = Files::new([directory.path().join("a")]);
        fs::write(directory.path().join("a"), "2").unwrap();
        timeout(SOON, files.changed()).await.expect("a change is told");
    }

    #[tokio::test]
    async fn a_link_to_elsewhere_is_polled() {
        let (here, elsewhere) = (directory_with(&[]), directory_with(&[("a", "1")]));
        symlink(elsewhere.path().join("a"), here.path().join("a")).unwrap();
        let mut files = Files::new([here.path().join("a")]);
        files.poll = Duration::from_millis(20);
        changes_by(&mut files, || fs::write(elsewhere.path().join("a"), "2").unwrap()).await;
    }

    #[tokio::test]
    async fn the_same_contents_and_other_files_are_no_change() {
        let directory = directory_with(&[("a", "1")]);
        let mut files = Files::new([directory.path().join("a")]);
        {
            let mut changed = pin!(files.changed());
            assert!(timeout(SETTLE, &mut changed).await.is_err(), "nothing has changed yet");
            fs::write(directory.path().join("a"), "1").unwrap();
            fs::write(directory.path().join("b"), "1").unwrap();
            assert!(timeout(3 * SETTLE, &mut changed).await.is_err(), "nothing has changed");
        }
        changes_by(&mut files, || fs::write(directory.path().join("a"), "2").unwrap()).await;
    }

    #[tokio::test]
    async fn a_slow_write_is_told_once_it_is_whole() {
        const PARTS: usize = 20;
        let directory = directory_with(&[("a", "")]);
        let path = directory.path().join("a");
        let mut files = Files::new([&path]);
        let writing = async {
            for n in 1..=PARTS {
                fs::write(&path, "x".repeat(n)).unwrap();
                sleep(SETTLE / 4).await;
            }
        };
        let told = async {
            let mut times = 0;
            while fs::read(&path).unwrap().len() < PARTS || times == 0 {
                files.changed().await;
                times += 1;
            }
            times
        };
        let (times, ()) = timeout(SOON, async { tokio::join!(told, writing) }).await.unwrap();
        assert!(times < PARTS / 2, "told {times} times");
    }

    #[tokio::test]
    async fn a_missing_directory_does_not_fail() {
        let directory = directory_with(&[]);
        let path = directory.path().join("later").join("a");
        let mut files = Files::new([&path]);
        files.poll = Duration::from_millis(20);
        changes_by(&mut files, || {
            fs::create_dir(directory.path().join("later")).unwrap();
            fs::write(&path, "1").unwrap();
        })
        .await;
    }
}
