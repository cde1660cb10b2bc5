#include "shufflestore/guard.hpp"

#include <cerrno>
#include <csignal>
#include <mutex>

#include "shufflestore/fork.hpp"
#include "shufflestore/sys.hpp"

namespace shufflestore {
namespace {

// The static TLS model: the handler must not be the one to allocate a thread's block.
[[gnu::tls_model("initial-exec")]] thread_local Guard* volatile t_guard = nullptr;
[[gnu::tls_model("initial-exec")]] thread_local volatile bool t_chaining = false;

struct sigaction g_previous {};  // written under process_lock() before our handler is in place

void die_by_default(int signal, const siginfo_t* info) noexcept {
  struct sigaction fatal {};
  fatal.sa_handler = SIG_DFL;
  sys().sigaction(signal, &fatal, nullptr);
  // A fault happens again on return; a signal that somebody sent has to be sent again.
  if (info->si_code <= 0) raise(signal);
}

void chain(int signal, siginfo_t* info, void* machine) noexcept {
  const bool has_handler = (g_previous.sa_flags & SA_SIGINFO) != 0 ||
                           (g_previous.sa_handler != SIG_DFL && g_previous.sa_handler != SIG_IGN);
  // Back here while chaining: that handler (faulthandler does so) brought back the one before it, which
  // is ours again, and raised the signal once more. Going round would never end.
  if (!has_handler || t_chaining) {
    die_by_default(signal, info);
    return;
  }
  t_chaining = true;
  if ((g_previous.sa_flags & SA_SIGINFO) != 0) {
    g_previous.sa_sigaction(signal, info, machine);
  } else {
    g_previous.sa_handler(signal);
  }
  t_chaining = false;
}

}  // namespace

struct GuardHandler {
  static void handle(int signal, siginfo_t* info, void* machine) noexcept {
    const int error = errno;
    Guard* const guard = t_guard;
    const auto* const at = static_cast<const std::uint8_t*>(info->si_addr);
    // si_addr of a fault in a vector load may be any byte of its page; the first page of the stretch counts.
    constexpr std::uintptr_t kPage = 65535;  // the largest page of any machine
    if (guard != nullptr && info->si_code > 0) {
      const auto first = reinterpret_cast<std::uintptr_t>(guard->first_) & ~kPage;
      const auto last = reinterpret_cast<std::uintptr_t>(guard->last_);
      const auto fault = reinterpret_cast<std::uintptr_t>(at);
      if (first <= fault && fault < last) siglongjmp(guard->back_, 1);
    }
    chain(signal, info, machine);
    errno = error;
  }
};

void install_guard() noexcept {
  struct sigaction current {};
  if (sys().sigaction(SIGBUS, nullptr, &current) != 0) return;
  if ((current.sa_flags & SA_SIGINFO) != 0 && current.sa_sigaction == GuardHandler::handle) return;
  const std::scoped_lock lock(process_lock());
  struct sigaction ours {};
  ours.sa_sigaction = GuardHandler::handle;
  // NODEFER: the jump leaves the handler for good, and must not leave SIGBUS blocked behind it.
  ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  g_previous = current;
  sys().sigaction(SIGBUS, &ours, nullptr);
}

bool Guard::run(void (*copy)(void* context, Guard& guard), void* context) noexcept {
  // The mask is not saved (that is a system call): see NODEFER above.
  if (sigsetjmp(back_, 0) != 0) {
    t_guard = nullptr;
    return false;
  }
  t_guard = this;
  copy(context, *this);
  t_guard = nullptr;
  return true;
}

}  // namespace shufflestore
