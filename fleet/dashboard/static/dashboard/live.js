// Keeps a page current: says how old it is, rests while nobody looks, opens confirmations. htmx does the fetching.
"use strict";

(() => {
  const LATE_AFTER_S = 20;
  let refreshedAt = Date.now();

  const age = (seconds) => (seconds < 90 ? `${seconds} s` : `${Math.round(seconds / 60)} min`);

  function showAge() {
    const seconds = Math.round((Date.now() - refreshedAt) / 1000);
    for (const element of document.querySelectorAll("[data-fresh]")) {
      element.textContent = seconds < 1 ? "updated just now" : `updated ${age(seconds)} ago`;
      element.classList.toggle("late", seconds > LATE_AFTER_S);
    }
  }

  document.addEventListener("htmx:before:request", (event) => {
    const isPoll = event.detail.ctx.sourceEvent?.type === "every";
    if (isPoll && document.hidden) event.preventDefault();
  });

  // Filters that are not set stay out of the address.
  document.addEventListener("htmx:config:request", (event) => {
    const { body, method } = event.detail.ctx.request;
    if (method !== "GET" || !(body instanceof FormData)) return;
    for (const [name, value] of [...body]) if (value === "") body.delete(name);
  });

  document.addEventListener("htmx:after:swap", () => {
    refreshedAt = Date.now();
    showAge();
  });

  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-opens]");
    if (opener) document.getElementById(opener.dataset.opens)?.showModal();
    const closer = event.target.closest("[data-closes]");
    if (closer) closer.closest("dialog")?.close();
  });

  setInterval(showAge, 1000);
  showAge();
})();
