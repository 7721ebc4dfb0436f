//! `benches read`: mounts images of one store in turn and reads them with cold caches, with this kernel.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, file};
use crate::mount::{Mounted, drop_caches};
use crate::reading::{self, Reading, StoreFile};
use crate::statistics::{markdown, ratio, spread};

/// Where the images are stored while they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// In memory (/dev/shm), to measure the file system instead of this machine's disk.
    Memory,
    /// On disk, so that seeks count too.
    Disk,
}

/// Seconds of every reading of one image, one value per round.
#[derive(Debug, Serialize, Deserialize)]
pub struct ImageReadings {
    /// The image as named on the command line.
    pub image: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// By [`Reading::ALL`]'s order: seconds of each round.
    pub seconds: Vec<Vec<f64>>,
}

/// How much to read, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How often each image is read in each way.
    pub rounds: usize,
    /// Only every n-th store path's files are read (`find+stat` always walks all): 1 reads all.
    pub every: usize,
}

/// Reads every image in every way, image after image within a round.
///
/// # Errors
/// When an image can't be mounted or read, or the images do not contain the same files.
pub fn run(images: &[PathBuf], extent: Extent, backing: Backing) -> Result<Vec<ImageReadings>, Error> {
    let memory = tempfile::tempdir_in("/dev/shm").map_err(file("create a directory in", "/dev/shm"))?;
    let placed = images
        .iter()
        .enumerate()
        .map(|(index, image)| match backing {
            Backing::Disk => Ok(image.clone()),
            Backing::Memory => {
                let copy = memory.path().join(index.to_string());
                fs::copy(image, &copy).map_err(file("copy into memory", image))?;
                Ok(copy)
            }
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let files = every_nth_path(same_files(images, &placed)?, extent.every);
    let rounds = extent.rounds;
    let mut results = images.iter().map(|image| empty_readings(image)).collect::<Result<Vec<_>, Error>>()?;
    for round in 1..=rounds {
        for (index, what) in Reading::ALL.into_iter().enumerate() {
            for (image, result) in placed.iter().zip(&mut results) {
                let seconds = read_cold(image, what, &files)?;
                if let Some(values) = result.seconds.get_mut(index) {
                    values.push(seconds);
                }
            }
        }
        crate::message(&format!("read: round {round} of {rounds}"));
    }
    Ok(results)
}

fn empty_readings(image: &Path) -> Result<ImageReadings, Error> {
    let bytes = fs::metadata(image).map_err(file("read", image))?.len();
    Ok(ImageReadings { image: image.display().to_string(), bytes, seconds: vec![Vec::new(); Reading::ALL.len()] })
}

/// Returns the files of all images; an error if the images differ.
fn same_files(images: &[PathBuf], placed: &[PathBuf]) -> Result<Vec<StoreFile>, Error> {
    let mut common: Option<Vec<StoreFile>> = None;
    for (name, image) in images.iter().zip(placed) {
        let mounted = Mounted::new(image)?;
        let files = reading::list(mounted.path()).map_err(file("list", name))?;
        match &common {
            None => common = Some(files),
            Some(first) if *first != files => {
                let (count, other) = (first.len(), files.len());
                let message = format!("{} has {other} files, not the {count} of the first image", name.display());
                return Err(Error::Unexpected(message));
            }
            Some(_) => {}
        }
    }
    common.ok_or_else(|| Error::Unexpected("no image was given".into()))
}

/// Returns the files of every n-th store path. Whole paths, because adjacent data in an image belongs to one path.
fn every_nth_path(files: Vec<StoreFile>, every: usize) -> Vec<StoreFile> {
    let store_path = |file: &StoreFile| file.path.components().next().map(|name| name.as_os_str().to_owned());
    let mut paths: Vec<_> = files.iter().map(store_path).collect();
    paths.dedup();
    let kept: std::collections::BTreeSet<_> = paths.into_iter().step_by(every.max(1)).collect();
    files.into_iter().filter(|file| kept.contains(&store_path(file))).collect()
}

fn read_cold(image: &Path, what: Reading, files: &[StoreFile]) -> Result<f64, Error> {
    let mounted = Mounted::new(image)?;
    drop_caches()?;
    reading::seconds(what, mounted.path(), files).map_err(file("read", image))
}

/// Formats two tables: median seconds (random reads in microseconds per read), and the ratio to the first image within
/// each round.
#[must_use]
pub fn tables(results: &[ImageReadings]) -> String {
    let Some(first) = results.first() else { return String::new() };
    let names = |kind: &str| -> Vec<String> {
        let readings = Reading::ALL.iter().map(|reading| match reading {
            Reading::RandomPages if kind == "seconds" => format!("{} (us)", reading.name()),
            _ => reading.name().to_owned(),
        });
        [kind.to_owned(), "MB".to_owned()].into_iter().chain(readings).collect()
    };
    let row = |result: &ImageReadings, cell: &dyn Fn(usize, &[f64]) -> String| -> Vec<String> {
        #[expect(clippy::cast_precision_loss, reason = "sizes of images are far below 2^53")]
        let megabytes = result.bytes as f64 / 1e6;
        let cells = result.seconds.iter().enumerate().map(|(index, values)| cell(index, values));
        [result.image.clone(), format!("{megabytes:.1}")].into_iter().chain(cells).collect()
    };
    let seconds: Vec<Vec<String>> = results.iter().map(|result| row(result, &seconds_cell)).collect();
    let ratios: Vec<Vec<String>> = results
        .iter()
        .skip(1)
        .map(|result| {
            row(result, &|index, values| ratio_cell(values, first.seconds.get(index).map_or(&[], Vec::as_slice)))
        })
        .collect();
    let mut text = markdown(&names("seconds"), &seconds);
    if !ratios.is_empty() {
        text.push_str(&format!("\nRatio to {} (median, minimum..maximum of the rounds):\n\n", first.image));
        text.push_str(&markdown(&names("ratio"), &ratios));
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand reads")]
fn seconds_cell(index: usize, values: &[f64]) -> String {
    let Some(spread) = spread(values) else { return "-".into() };
    if Reading::ALL.get(index) == Some(&Reading::RandomPages) {
        return format!("{:.0}", spread.median / reading::RANDOM_READS as f64 * 1e6);
    }
    format!("{:.3}", spread.median)
}

fn ratio_cell(values: &[f64], base: &[f64]) -> String {
    ratio(values, base)
        .map_or_else(|| "-".into(), |ratio| format!("{:.2} ({:.2}..{:.2})", ratio.median, ratio.minimum, ratio.maximum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_path_is_kept_whole() {
        let files: Vec<StoreFile> =
            ["a/1", "a/2", "b/1", "c/1", "c/2"].iter().map(|path| StoreFile { path: path.into(), bytes: 1 }).collect();
        let kept: Vec<PathBuf> = every_nth_path(files, 2).into_iter().map(|file| file.path).collect();
        assert_eq!(kept, ["a/1", "a/2", "c/1", "c/2"].map(PathBuf::from));
    }
}
