// The search of the site runs in a worker, and a page that was opened from a disk may start none:
// there it runs in a hidden frame. (The theme would fetch such a shim from another host.)
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inside = frame.contentDocument
      inside.open() // else some browsers replace the empty document later
      inside.write("<!doctype html><title>search</title><body>")
      inside.close()
      this.frame = frame
      this.window = frame.contentWindow
      this.window.postMessage = (data) =>
        this.dispatchEvent(new MessageEvent("message", { data }))
      const script = inside.createElement("script")
      this.ready = new Promise((resolve) => script.addEventListener("load", resolve))
      script.src = url
      inside.body.append(script)
    }
    postMessage(data) {
      const { MessageEvent } = this.window
      this.ready.then(() => this.window.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() {
      this.frame.remove()
    }
  }
}
