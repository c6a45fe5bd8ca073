//! Which target description the client has.

use vcpu_caps::VcpuId;

use super::Guest;
use crate::arch::Arch;
use crate::config::Description;
use crate::host::Host;

/// The target description that the client has read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientView<V> {
    /// `None` before the client reads one.
    read: Option<V>,
    /// The client has been told that it is too narrow.
    told: bool,
}

impl<V> Default for ClientView<V> {
    fn default() -> Self {
        Self {
            read: None,
            told: false,
        }
    }
}

impl<H: Host> Guest<H> {
    /// Returns the client's view: that of the description which it has read last. One that reads none knows the
    /// architecture by itself, and has all registers.
    pub(crate) fn view(&self) -> <H::Arch as Arch>::View {
        let view = self.client_view.read.or_else(|| self.named_view());
        view.unwrap_or(H::Arch::WIDEST_VIEW)
    }

    /// The client reads the description from its beginning: it numbers registers by it from now on.
    pub(crate) fn read_view(&mut self) -> <H::Arch as Arch>::View {
        let view = self.view_of_vcpus(self.named_view());
        self.client_view = ClientView {
            read: Some(view),
            told: false,
        };
        view
    }

    /// Returns the view that the VMM has named for this client, as far as it has read any.
    fn named_view(&self) -> Option<<H::Arch as Arch>::View> {
        let name = match self.config.description {
            Description::Always(name) => name,
            Description::FirstThis(name) if self.client_view.read.is_none() => name,
            Description::FirstThis(_) | Description::ByMode => return None,
        };
        let view = H::Arch::view_named(name);
        if view.is_none() {
            tracing::error!(
                name,
                "there is no such target description: the mode decides"
            );
        }
        view
    }

    /// Returns the widest view that the vCPUs have, or the `named` one with their registers: a client has one for
    /// all threads. It is the widest of all while there is no vCPU, and if the registers of one cannot be read.
    pub(crate) fn view_of_vcpus(
        &mut self,
        named: Option<<H::Arch as Arch>::View>,
    ) -> <H::Arch as Arch>::View {
        let all = named.unwrap_or(H::Arch::WIDEST_VIEW);
        let mut widest = None;
        for vcpu in (0..self.host.vcpu_count()).map(VcpuId) {
            let read = self
                .registers
                .read(&mut self.host, vcpu, H::Arch::VIEW_GROUPS);
            let view = match read {
                Ok(registers) => H::Arch::view(registers, named),
                Err(error) => {
                    super::log_refused(vcpu, &error);
                    all
                }
            };
            widest = widest.max(Some(view));
            if view == H::Arch::WIDEST_VIEW {
                break;
            }
        }
        widest.unwrap_or(all)
    }

    /// Says once that the client's description is too narrow for the mode in which a vCPU has stopped.
    pub(crate) fn note_narrow_view(&mut self, vcpu: VcpuId) {
        let view = self.view();
        if self.client_view.told || view == H::Arch::WIDEST_VIEW || !self.exists(vcpu) {
            return;
        }
        let read = self
            .registers
            .read(&mut self.host, vcpu, H::Arch::STOP_GROUPS);
        let Ok(registers) = read else {
            // The stop reply has no registers either, and says so in the log.
            return;
        };
        if H::Arch::is_whole(view, registers) {
            return;
        }
        let text = format!(
            "thread {}: {}: the registers of this client's target description, {}, are too narrow for it: \
             what does not fit is unavailable. {}",
            super::tid(vcpu),
            H::Arch::mode(registers),
            H::Arch::view_name(view),
            self.how_to_change(),
        );
        self.notices.push(&text);
        self.client_view.told = true;
    }

    /// Says how a client gets the description for the mode of the vCPUs.
    pub(crate) fn how_to_change(&self) -> &'static str {
        if matches!(self.config.description, Description::Always(_)) {
            "The VMM gives every client this one: start it with another architecture for GDB"
        } else {
            "In GDB type `unset tdesc filename` to read the one for this mode; other clients connect again"
        }
    }
}
