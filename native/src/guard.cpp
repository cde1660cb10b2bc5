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
[[gnu::tls_model("initial-exec")]] thread_local void* volatile t_last = nullptr;  // fault that was handed on
[[gnu::tls_model("initial-exec")]] thread_local volatile int t_repeats = 0;

struct sigaction g_previous {};  // written under process_lock() before our handler is in place

void die_by_default(int signal, const siginfo_t* info) noexcept {
  struct sigaction fatal {};
  fatal.sa_handler = SIG_DFL;
  sys().sigaction(signal, &fatal, nullptr);
  // A fault happens again on return; a signal that somebody sent has to be sent again.
  if (info->si_code <= 0) raise(signal);
}

// Whether handing the signal on goes round in circles: that handler brought back the one before it, which
// is ours again, and then raised the signal once more (faulthandler does) or returned to the fault.
bool goes_round(const siginfo_t* info) noexcept {
  constexpr int kTooMany = 1000;
  const bool is_raised = info->si_code <= 0;
  if (is_raised && t_chaining) return true;
  void* const at = is_raised ? nullptr : info->si_addr;
  t_repeats = at == t_last ? t_repeats + 1 : 0;
  t_last = at;
  return t_repeats > kTooMany;
}

void chain(int signal, siginfo_t* info, void* machine) noexcept {
  const bool has_handler = (g_previous.sa_flags & SA_SIGINFO) != 0 ||
                           (g_previous.sa_handler != SIG_DFL && g_previous.sa_handler != SIG_IGN);
  if (!has_handler || goes_round(info)) {
    die_by_default(signal, info);
    return;
  }
  t_chaining = true;  // stays so if that handler jumps away; then only a raised signal is judged by it
  if ((g_previous.sa_flags & SA_SIGINFO) != 0) {
    g_previous.sa_sigaction(signal, info, machine);
  } else {
    g_previous.sa_handler(signal);
  }
  t_chaining = false;
}

// NODEFER keeps the signal open, unless somebody wraps sigaction: ThreadSanitizer blocks all in a handler.
void unblock() noexcept {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGBUS);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
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
    unblock();
    return false;
  }
  t_guard = this;
  copy(context, *this);
  t_guard = nullptr;
  return true;
}

}  // namespace shufflestore
