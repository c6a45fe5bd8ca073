//! gdb, run by a script or command by command.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::{PATIENCE, Vmm, spawn, wait};

fn command(vmm: &Vmm, target: &str) -> Command {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-q"])
        .args(["-ex", "set confirm off"])
        .args(["-ex", "set pagination off"])
        .args(["-ex", "set width 0"])
        // Longer than any wait of a test.
        .args(["-ex", "set remotetimeout 30"])
        .args(["-ex", &format!("target remote {target}")])
        .arg(&vmm.elf);
    gdb
}

/// All output of gdb.
pub struct Transcript(pub String);

impl Transcript {
    /// The parts must appear, in this order.
    #[track_caller]
    pub fn expect(&self, parts: &[&str]) -> &Self {
        let mut rest = self.0.as_str();
        for part in parts {
            let Some(at) = rest.find(part) else {
                panic!("gdb did not say {part:?} (in this place):\n{}", self.0);
            };
            rest = &rest[at + part.len()..];
        }
        self
    }

    #[track_caller]
    pub fn expect_not(&self, part: &str) -> &Self {
        assert!(!self.0.contains(part), "gdb said {part:?}:\n{}", self.0);
        self
    }

    /// The numbers that `printf "NAME=%#lx\n"` (or `%ld`) printed, in order.
    pub fn values(&self, name: &str) -> Vec<u64> {
        let prefix = format!("{name}=");
        self.0
            .lines()
            .filter_map(|line| line.strip_prefix(&prefix))
            .map(|text| match text.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16),
                None => text.parse(),
            })
            .map(|number| number.unwrap_or_else(|error| panic!("{name}: {error}:\n{}", self.0)))
            .collect()
    }

    /// The only number of that name.
    #[track_caller]
    pub fn value(&self, name: &str) -> u64 {
        match self.values(name).as_slice() {
            [value] => *value,
            values => panic!("{name} was printed {} times:\n{}", values.len(), self.0),
        }
    }
}

impl Vmm {
    fn target(&self) -> String {
        self.socket.display().to_string()
    }

    /// Runs a script in gdb, attached; gdb detaches at its end.
    #[track_caller]
    pub fn gdb(&self, script: &str) -> Transcript {
        self.gdb_at(&self.target(), script)
    }

    /// Runs a script in a gdb that is attached to this address.
    #[track_caller]
    pub fn gdb_at(&self, target: &str, script: &str) -> Transcript {
        let script_path = self.directory().join("script.gdb");
        std::fs::write(&script_path, script).unwrap();
        // A file, not a pipe: it need not be read while gdb runs.
        let output_path = self.directory().join("gdb.out");
        let output = File::create(&output_path).unwrap();
        let mut gdb = command(self, target);
        gdb.arg("-batch")
            .arg("-x")
            .arg(&script_path)
            .stdin(Stdio::null())
            .stderr(output.try_clone().unwrap())
            .stdout(output);
        let mut child = spawn(&mut gdb).expect("gdb does not start: install gdb");
        let status = wait(&mut child);
        let text = std::fs::read(&output_path).unwrap();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(status.is_some(), "gdb hangs after:\n{text}");
        assert!(
            !text.contains("Error in sourced command file"),
            "the script did not end:\n{text}"
        );
        Transcript(text)
    }

    /// Starts an interactive gdb. It is attached once this returns.
    #[track_caller]
    pub fn typing(&self) -> Typing {
        let mut child = spawn(
            command(self, &self.target())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        )
        .expect("gdb does not start: install gdb");
        let said = Arc::new(Mutex::new(String::new()));
        let streams: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        for mut stream in streams {
            let said = Arc::clone(&said);
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                    said.lock().unwrap().push_str(&text);
                }
            });
        }
        let mut typing = Typing {
            stdin: child.stdin.take().unwrap(),
            child,
            said,
            seen: 0,
            commands: 0,
        };
        typing.command("echo attached\\n");
        typing
    }
}

/// An interactive gdb. Dropping it kills it.
pub struct Typing {
    child: Child,
    stdin: ChildStdin,
    said: Arc<Mutex<String>>,
    /// How much of the output has been searched.
    seen: usize,
    commands: usize,
}

impl Typing {
    /// Types a line, and does not wait.
    #[track_caller]
    pub fn enter(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("gdb reads");
        self.stdin.flush().expect("gdb reads");
    }

    /// Types a line. Returns the output until it is done.
    #[track_caller]
    pub fn command(&mut self, line: &str) -> String {
        self.commands += 1;
        let marker = format!("<done {}>", self.commands);
        self.enter(line);
        self.enter(&format!("echo {marker}\\n"));
        self.wait_for(&marker)
    }

    /// Waits until new output contains `text`. Returns the new output up to there.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            {
                let said = self.said.lock().unwrap();
                let new = &said[self.seen..];
                if let Some(at) = new.find(text) {
                    let end = at + text.len();
                    let answer = new[..end].to_owned();
                    self.seen += end;
                    return answer;
                }
            }
            assert!(start.elapsed() < PATIENCE, "gdb never said {text:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What Ctrl-C in its terminal does.
    pub fn ctrl_c(&self) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: `kill` touches no memory, and the child has not been waited for, so the id is
        // still its.
        let sent = unsafe { libc::kill(pid, libc::SIGINT) };
        assert_eq!(sent, 0);
    }

    /// Waits for gdb's end.
    #[track_caller]
    pub fn quit(mut self) {
        self.enter("quit");
        assert!(wait(&mut self.child).is_some(), "gdb does not quit");
    }
}

impl Drop for Typing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let said = self
                .said
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            eprintln!("--- gdb ---\n{said}");
        }
    }
}
