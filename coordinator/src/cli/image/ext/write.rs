//! What is written into an ext file system, by the file system's own tools too: `debugfs -w` and `e2fsck`.

use std::fs;

use super::{Ext, Kind, Stat};
use crate::cli::image::payload::{File, Payload};
use crate::cli::image::tool;
use crate::failure::{CliError, Result};

impl Ext<'_> {
    /// Whether all of it is there, exactly so.
    pub async fn has(&self, payload: &Payload) -> Result<bool> {
        for file in &payload.files {
            let right =
                |stat: Stat| stat.kind == Kind::Regular && stat.mode == file.mode && stat.owned_by_root;
            if !self.stat(&file.path).await?.is_some_and(right)
                || self.read(&file.path).await?.as_ref() != Some(&file.content)
            {
                return Ok(false);
            }
        }
        let (link, target) = payload.link;
        Ok(self.stat(link).await?.is_some_and(|stat| stat.kind == Kind::Link(target.to_owned())))
    }

    /// Plays back the journal of a guest that was not shut down, and mends what can be mended safely.
    pub async fn settle(&self) -> Result<()> {
        let checked = tool::output(self.folder, "e2fsck", &["-p", &self.device], tool::LONG).await?;
        // 1: something was mended.
        if matches!(checked.status.code(), Some(0 | 1)) {
            return Ok(());
        }
        let said = tool::said(&checked);
        Err(CliError::usage(format!("the file system in the image is not in order: {said}")))
    }

    /// Writes all of it, and looks whether it is there and the file system whole.
    pub async fn put(&self, payload: &Payload) -> Result<()> {
        let script = self.script(payload).await?;
        let write = |name: String, content: &[u8]| {
            let path = self.folder.join(name);
            let failed = |error| CliError::usage(format!("cannot write {}: {error}", path.display()));
            fs::write(&path, content).map_err(failed)
        };
        for (number, file) in payload.files.iter().enumerate() {
            write(source(number), &file.content)?;
        }
        write("script".to_owned(), script.as_bytes())?;
        // It succeeds whatever its commands did: what counts is what is there afterwards.
        let wrote =
            tool::output(self.folder, "debugfs", &["-w", "-f", "script", &self.device], tool::LONG).await?;
        let failed = |why: String| {
            Err(CliError::usage(format!("the agent could not be written into the image: {why}")))
        };
        if !self.has(payload).await? {
            // Its commands are shown as well.
            let words = String::from_utf8_lossy(&wrote.stderr);
            let words: Vec<_> = words.lines().skip(1).take(4).collect();
            return failed(words.join("; "));
        }
        let checked = tool::output(self.folder, "e2fsck", &["-f", "-n", &self.device], tool::LONG).await?;
        if !checked.status.success() {
            return failed(tool::said(&checked));
        }
        Ok(())
    }

    async fn script(&self, payload: &Payload) -> Result<String> {
        let mut script = String::new();
        let mut made = Vec::new();
        for (number, File { path, mode, .. }) in payload.files.iter().enumerate() {
            let (folder, name) = self.room_for(path, &mut made, &mut script).await?;
            script += &format!("cd {folder}\nwrite {} {name}\n", source(number));
            for (field, value) in
                [("mode", format!("0100{mode:03o}")), ("uid", "0".into()), ("gid", "0".into())]
            {
                script += &format!("set_inode_field {path} {field} {value}\n");
            }
        }
        let (link, target) = payload.link;
        let (folder, name) = self.room_for(link, &mut made, &mut script).await?;
        script += &format!("cd {folder}\nsymlink {name} {target}\n");
        Ok(script)
    }

    /// Has the folders of `path` made that are not there, and takes away what is at `path`. Answers folder and name.
    async fn room_for<'p>(
        &self,
        path: &'p str,
        made: &mut Vec<&'p str>,
        script: &mut String,
    ) -> Result<(&'p str, &'p str)> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let ends = folder.match_indices('/').map(|(at, _)| at).skip(1).chain([folder.len()]);
        for folder in ends.map(|end| &folder[..end]) {
            match self.stat(folder).await?.map(|stat| stat.kind) {
                Some(Kind::Directory) => {}
                None if made.contains(&folder) => {}
                None => {
                    *script += &format!("mkdir {folder}\n");
                    made.push(folder);
                }
                Some(_) => {
                    return Err(CliError::usage(format!("in the image {folder} is no directory")));
                }
            }
        }
        match self.stat(path).await?.map(|stat| stat.kind) {
            None => {}
            Some(Kind::Directory) => {
                return Err(CliError::usage(format!("in the image {path} is a directory")));
            }
            Some(_) => *script += &format!("rm {path}\n"),
        }
        Ok((folder, name))
    }
}

fn source(number: usize) -> String {
    format!("file-{number}")
}
