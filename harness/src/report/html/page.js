(function () {
  "use strict";
  var root = document.documentElement;
  root.classList.add("has-script");
  var findings = Array.prototype.slice.call(document.querySelectorAll(".finding"));
  var keys = document.getElementById("keys");
  var help = document.getElementById("help");

  function dark() {
    var now = root.getAttribute("data-theme");
    if (now) { return now === "dark"; }
    return window.matchMedia("(prefers-color-scheme: dark)").matches;
  }
  function theme() { root.setAttribute("data-theme", dark() ? "light" : "dark"); }
  function show() {
    keys.hidden = !keys.hidden;
    help.setAttribute("aria-expanded", String(!keys.hidden));
  }
  function current() { return findings.indexOf(document.activeElement ? document.activeElement.closest(".finding") : null); }
  function go(step) {
    if (findings.length === 0) { return; }
    var at = current();
    var next = at === -1 ? (step > 0 ? 0 : findings.length - 1) : Math.min(Math.max(at + step, 0), findings.length - 1);
    findings[next].focus({ preventScroll: true });
    findings[next].scrollIntoView({ block: "start" });
  }
  function told(button, text) {
    button.textContent = text;
    window.setTimeout(function () { button.textContent = "Copy"; }, 1500);
  }
  function copy(button) {
    var pre = button.parentElement.querySelector("pre");
    function by_hand() {
      window.getSelection().selectAllChildren(pre);
      told(button, document.execCommand("copy") ? "Copied" : "Press Ctrl-C");
    }
    if (!navigator.clipboard) { by_hand(); return; }
    navigator.clipboard.writeText(pre.textContent).then(function () { told(button, "Copied"); }, by_hand);
  }
  document.getElementById("theme").addEventListener("click", theme);
  help.addEventListener("click", show);
  document.addEventListener("click", function (event) {
    var button = event.target.closest(".copy");
    if (button) { copy(button); }
  });
  document.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey) { return; }
    // What scrolls by itself keeps its arrows.
    var scrolls = event.target.closest(".scroll, pre");
    switch (event.key) {
      case "ArrowRight": if (scrolls) { return; } go(1); break;
      case "ArrowLeft": if (scrolls) { return; } go(-1); break;
      case "j": go(1); break;
      case "k": go(-1); break;
      case "c": {
        var at = current();
        var button = findings.length === 0 ? null : findings[Math.max(at, 0)].querySelector(".command .copy");
        if (button) { copy(button); }
        break;
      }
      case "d": theme(); break;
      case "g": window.scrollTo(0, 0); break;
      case "?": show(); break;
      case "Escape": keys.hidden = true; help.setAttribute("aria-expanded", "false"); return;
      default: return;
    }
    event.preventDefault();
  });
}());
