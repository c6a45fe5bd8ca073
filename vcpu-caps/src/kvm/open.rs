//! Opening the KVM device, with errors that say what to do.

use std::borrow::ToOwned;
use std::ffi::{CStr, CString};

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::Kvm;
use thiserror::Error;

/// Why KVM cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The device does not exist.
    #[error(
        "{path:?} does not exist: load the kvm module of this CPU (modprobe kvm_intel or kvm_amd), \
         enable virtualization in the firmware, or, inside a VM, nested virtualization on its host"
    )]
    Missing {
        /// The device.
        path: CString,
    },
    /// The device may not be opened by this user.
    #[error(
        "no permission to open {path:?}: join the group that owns it (usually `kvm`) and log in \
         again, or pass it into the container"
    )]
    Permission {
        /// The device.
        path: CString,
    },
    /// The device could not be opened for another reason.
    #[error("cannot open {path:?}: {source}")]
    Open {
        /// The device.
        path: CString,
        /// The error from the kernel.
        source: kvm_ioctls::Error,
    },
    /// The file is something else, or speaks another version of the API than 12, the only one
    /// since Linux 2.6.22 (api.rst 4.1).
    #[error("{path:?} answers KVM API version {version} and not 12: it is not a KVM device")]
    ApiVersion {
        /// The device.
        path: CString,
        /// The result of `KVM_GET_API_VERSION`; -1 for a file that is not a KVM device.
        version: i32,
    },
}

/// Opens `/dev/kvm` and checks the API version.
///
/// # Errors
/// If there is no usable KVM; the message says what to do.
pub fn open() -> Result<Kvm, OpenError> {
    open_at(c"/dev/kvm")
}

/// Opens the KVM device at `path` and checks the API version.
///
/// # Errors
/// If there is no usable KVM; the message says what to do.
pub fn open_at(path: &CStr) -> Result<Kvm, OpenError> {
    let kvm = Kvm::new_with_path(path).map_err(|source| {
        let path = path.to_owned();
        match source.errno() {
            // ENODEV and ENXIO: a device node without its module.
            libc::ENOENT | libc::ENODEV | libc::ENXIO => OpenError::Missing { path },
            libc::EACCES | libc::EPERM => OpenError::Permission { path },
            _ => OpenError::Open { path, source },
        }
    })?;
    let version = kvm.get_api_version();
    if u32::try_from(version) == Ok(KVM_API_VERSION) {
        Ok(kvm)
    } else {
        Err(OpenError::ApiVersion {
            path: path.to_owned(),
            version,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn a_missing_device_says_which_module_to_load() {
        let error = open_at(c"/nonexistent/kvm").unwrap_err();
        assert!(matches!(error, OpenError::Missing { .. }), "{error}");
        assert!(error.to_string().contains("modprobe"));
    }

    #[test]
    fn a_file_that_is_not_a_kvm_device_is_refused() {
        let error = open_at(c"/dev/null").unwrap_err();
        assert!(
            matches!(error, OpenError::ApiVersion { version: -1, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_directory_is_refused_with_the_kernels_answer() {
        let error = open_at(c"/dev").unwrap_err();
        assert!(
            matches!(&error, OpenError::Open { source, .. } if source.errno() == libc::EISDIR),
            "{error}"
        );
    }
}
