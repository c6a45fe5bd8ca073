//! Which target description the client has.

use vcpu_caps::VcpuId;

use super::Guest;
use crate::arch::Arch;
use crate::config::Description;
use crate::host::Host;

/// The target description that the client has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientView<V> {
    view: V,
    /// The client has read it.
    was_read: bool,
    /// The client has been told that it is too narrow.
    told: bool,
}

impl<H: Host> Guest<H> {
    /// Returns the client's view. It is chosen once, and again when the client reads the description again.
    pub(crate) fn view(&mut self) -> <H::Arch as Arch>::View {
        match self.client_view {
            Some(ClientView { view, .. }) => view,
            None => self.choose_view(false),
        }
    }

    /// The client reads the description from its beginning: it numbers registers by it from now on.
    pub(crate) fn read_view(&mut self) -> <H::Arch as Arch>::View {
        self.choose_view(true)
    }

    fn choose_view(&mut self, was_read: bool) -> <H::Arch as Arch>::View {
        let before = self.client_view;
        let again = before.is_some_and(|before| before.was_read);
        let named = match self.config.description {
            Description::Always(name) => view_named::<H::Arch>(name),
            Description::FirstThis(name) if !again => view_named::<H::Arch>(name),
            Description::FirstThis(_) | Description::ByMode => None,
        };
        let view = named.unwrap_or_else(|| self.view_by_mode());
        self.client_view = Some(ClientView {
            view,
            was_read,
            told: false,
        });
        view
    }

    /// Returns the widest view of the modes that the vCPUs are in: a client has one for all threads. It is the
    /// widest of all while there is no vCPU, and if the registers of one cannot be read.
    pub(crate) fn view_by_mode(&mut self) -> <H::Arch as Arch>::View {
        let mut widest = None;
        for vcpu in (0..self.host.vcpu_count()).map(VcpuId) {
            let read = self
                .registers
                .read(&mut self.host, vcpu, H::Arch::STOP_GROUPS);
            let view = match read {
                Ok(registers) => H::Arch::view(registers),
                Err(error) => {
                    super::log_refused(vcpu, &error);
                    H::Arch::WIDEST_VIEW
                }
            };
            widest = widest.max(Some(view));
            if view == H::Arch::WIDEST_VIEW {
                break;
            }
        }
        widest.unwrap_or(H::Arch::WIDEST_VIEW)
    }

    /// Says once that the client's description is too narrow for the mode in which a vCPU has stopped.
    pub(crate) fn note_narrow_view(&mut self, vcpu: VcpuId) {
        let Some(client_view) = self.client_view.filter(|client_view| !client_view.told) else {
            return;
        };
        let view = client_view.view;
        if view == H::Arch::WIDEST_VIEW || !self.exists(vcpu) {
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
        self.client_view = Some(ClientView {
            told: true,
            ..client_view
        });
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

fn view_named<A: Arch>(name: &'static str) -> Option<A::View> {
    let view = A::view_named(name);
    if view.is_none() {
        tracing::error!(
            name,
            "there is no such target description: the mode decides"
        );
    }
    view
}
