//! Records of finished builds. With a record, a build whose output already exists ends immediately.
//!
//! A record is accepted if the file at the output is exactly the file that was built: it has the same device, inode,
//! length, modification and change time. Programs cannot set the change time, so every write is detected. An image that
//! was not synced is accepted only until the host is started again, because a power cut can have damaged it.

use super::block_hashes::BlocksOf;
use super::{Cache, CacheError, open_unstamped};
use crate::erofs::Profile;
use crate::pack::settings_name;
use crate::plan::ImagePlan;
use crate::report::BuildReport;
use crate::settings::ImageFormat;
use program::unnamed_file::UnnamedFile;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::{Duration, SystemTime};

/// Minimum interval between two updates of the times of an existing image's record and packs.
const STAMP_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// Maximum length of a record in bytes. A valid one has less than 2 KiB.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// A key that identifies the content of an image. Plans with equal keys give equal images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanKey(String);

impl PlanKey {
    /// Returns the key of a plan; `None` if the NAR hash of a path is unknown, because its content can then only be
    /// determined by reading it.
    pub fn of(plan: &ImagePlan) -> Option<Self> {
        let mut hasher = blake3::Hasher::new_derive_key("microvm-image 2026-11 plan, format, verity");
        hasher.update(settings_text(plan.format).as_bytes());
        hasher.update(&[u8::from(plan.verity)]);
        for path in &plan.paths {
            hasher.update(path.path.base_name().as_bytes());
            hasher.update(&[0]);
            hasher.update(path.nar_hash.as_ref()?);
        }
        Some(Self(hasher.finalize().to_hex().to_string()))
    }
}

/// Increased when a release makes other images from the same plan and segments, for example with other tables or
/// another order.
const SQUASHFS_LAYOUT_VERSION: u32 = 3;
/// The same for erofs.
const EROFS_LAYOUT_VERSION: u32 = 1;

fn settings_text(format: ImageFormat) -> String {
    match format {
        ImageFormat::Squashfs(settings) => format!("{} layout {SQUASHFS_LAYOUT_VERSION}\n", settings_name(&settings)),
        ImageFormat::Erofs(profile) => {
            let profile = match profile {
                Profile::Disk => "disk",
                Profile::Dax => "dax",
            };
            format!("erofs {profile} layout {EROFS_LAYOUT_VERSION}\n")
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    plan: PlanKey,
    identity: FileIdentity,
    /// [`boot_id`] of the build, if the image was not synced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    valid_in_boot: Option<String>,
    report: BuildReport,
}

/// The attributes that identify the state of a file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileIdentity {
    device: u64,
    inode: u64,
    length_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Whether an image is on disk before it gets its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Every image is synced first, so that a power cut leaves a complete image.
    Synced,
    /// Only an image that replaces a file is synced first. The kernel writes a new image to disk later, and a power cut
    /// before that can leave a damaged one. After another start of the host, a build therefore makes the image again.
    UnsyncedIfNew,
}

/// An image that has its name.
#[derive(Debug)]
pub struct Published {
    /// The image.
    pub file: File,
    /// Whether it is on disk.
    pub is_synced: bool,
}

/// Returns a text that is different after each start of the host.
fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim_end().to_owned())
}

impl Cache {
    /// Returns the report of the build that made the image at `output`, if it was built from this plan, is unchanged,
    /// and is on disk where `durability` demands that.
    ///
    /// It updates the times of the record, and of the image's packs and hashes, at most once a day, because machines
    /// that are only started again need the packs at their next update.
    pub fn finished_build(
        &self,
        (key, plan): (&PlanKey, &ImagePlan),
        output: &Path,
        durability: Durability,
    ) -> Option<BuildReport> {
        let file = open_unstamped(&self.record_path(output).ok()?).ok()??;
        let mut text = Vec::new();
        // Reading from anything except a regular file could block for ever.
        let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
        (&file).take(MAX_RECORD_BYTES).read_to_end(&mut text).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        let same = record.plan == *key && record.identity == FileIdentity::of(&fs::symlink_metadata(output).ok()?);
        let is_durable = match (record.valid_in_boot, durability) {
            (None, _) => true,
            (Some(_), Durability::Synced) => false,
            (Some(boot), Durability::UnsyncedIfNew) => boot_id().is_ok_and(|now| now == boot),
        };
        if !same || !is_durable {
            return None;
        }
        if metadata.modified().is_ok_and(|used| used.elapsed().is_ok_and(|age| age > STAMP_INTERVAL)) {
            // The record is also usable if the cache is read-only.
            let _ = file.set_modified(SystemTime::now());
            for path in &plan.paths {
                let blocks = match &plan.format {
                    ImageFormat::Squashfs(settings) => {
                        let _ = self.find_pack(path, settings);
                        BlocksOf::Pack(settings)
                    }
                    ImageFormat::Erofs(_) => BlocksOf::Files,
                };
                if plan.verity {
                    drop(self.open_block_hashes(path, blocks));
                }
            }
        }
        Some(record.report)
    }

    /// Records that the file that was published at `output` is the image of a plan. The attributes are read from the
    /// descriptor, because another build may have replaced the image at `output` in the meantime.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn remember_build(
        &self,
        plan: &PlanKey,
        output: &Path,
        published: &Published,
        report: &BuildReport,
    ) -> Result<(), CacheError> {
        let fail = |source| CacheError { action: "describe an output", path: output.to_owned(), source };
        let identity = FileIdentity::of(&published.file.metadata().map_err(fail)?);
        let valid_in_boot = if published.is_synced { None } else { Some(boot_id().map_err(fail)?) };
        let record = Record { plan: plan.clone(), identity, valid_in_boot, report: report.clone() };
        let text = serde_json::to_vec(&record).map_err(|error| fail(error.into()))?;
        let place = self.record_path(output).map_err(fail)?;
        let file = UnnamedFile::create_sibling(&place).map_err(fail)?;
        file.file().write_all(&text).map_err(fail)?;
        self.keep(&place, &file, Weak::new())
    }

    fn record_path(&self, output: &Path) -> io::Result<PathBuf> {
        let directory = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let absolute = directory.canonicalize()?.join(output.file_name().unwrap_or_default());
        let hash = blake3::hash(absolute.as_os_str().as_bytes());
        Ok(self.root.join("outputs").join(hash.to_hex().as_str()))
    }
}
